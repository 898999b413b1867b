"""One way to local disk and S3: `uris` opens and lists, `commit` makes a directory exist all at once."""

"""Sources that `edm-ray prepare` takes: the built-in digits, and folders of pictures."""

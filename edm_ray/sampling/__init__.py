"""Images by seed."""

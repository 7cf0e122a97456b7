"""The commands of `mixflowc`, one in a file."""

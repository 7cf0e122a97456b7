"""What mixflow makes of a program, as a file to commit."""

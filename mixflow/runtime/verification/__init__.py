"""Whether the results of two programs are the same but for roundings."""

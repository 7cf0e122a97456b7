"""Compiled functions: run, lower, measure, verify, export. Knows nothing of passes' insides."""

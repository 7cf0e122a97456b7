"""Analyses: they read programs and change nothing."""

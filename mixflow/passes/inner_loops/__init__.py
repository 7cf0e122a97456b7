"""Loops that take gradient steps: which those are, what plans call them, and loops in loops."""

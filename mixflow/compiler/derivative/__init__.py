"""The symbolic derivative: its primitives, their two rules, and their plain programs."""

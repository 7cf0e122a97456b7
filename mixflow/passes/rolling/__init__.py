"""A loop in the place of equal windows of operations: what it reads and returns, and its making."""

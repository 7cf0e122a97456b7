"""What keeps a second run of a computation apart from the first, and what it waits for."""

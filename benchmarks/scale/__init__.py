"""How large a model, and how long a sequence, fit into a memory: plain JAX, expert, mixflow."""

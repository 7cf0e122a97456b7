"""The examples, measured: plain JAX, a checkpointed step, mixflow, and mixflow within budgets."""

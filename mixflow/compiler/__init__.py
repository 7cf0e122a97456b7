"""From a Python function to an optimised JAX function: capture, IR, passes, emission."""

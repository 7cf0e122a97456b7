"""Double precision for every test: equality of gradients is judged in float64.

And machine code as LLVM makes it without optimising, in the processes that tests start as well:
results and XLA's buffers are the same, and half of the tests' time went into it.
"""

import os

import jax

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
jax.config.update("jax_enable_x64", True)

"""Double precision for every test: equality of gradients is judged in float64."""

import jax

jax.config.update("jax_enable_x64", True)

"""JAX's own tests, with the derivatives in them captured."""

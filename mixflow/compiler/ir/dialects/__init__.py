"""The IR: `jaxpr`, which holds any JAX program, and `mixflow`, which holds derivatives."""

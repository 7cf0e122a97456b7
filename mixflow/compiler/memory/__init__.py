"""What XLA would fuse and keep in memory, estimated from a program as JAX lowers it."""

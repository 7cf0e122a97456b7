"""The IR: its dialects, and the ways from a jaxpr and back to one."""

"""From a Python function to a jaxpr in which every derivative is one equation."""

"""Plain jaxprs: to walk, to rewrite and to interpret them."""

"""Random second-order programs, judged against plain JAX: `python -m benchmarks fuzz`."""

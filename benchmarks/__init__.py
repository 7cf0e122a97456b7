"""Benchmarks: `python -m benchmarks NAME`. Figures are ratios of runs side by side."""

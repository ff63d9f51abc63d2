"""Benchmarks of single kernels on a GPU: ``python -m kernels.bench``."""

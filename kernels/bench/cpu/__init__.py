"""Benchmarks of the native kernels of a CPU: ``python -m kernels.bench.cpu``."""

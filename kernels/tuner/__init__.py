"""Choosing configurations on a GPU: ``python -m kernels.tune``."""

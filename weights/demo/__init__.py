"""The demo model that ships with Quire: its trainer, its scorer and its data rules.

The folder is not part of the server: nothing here imports `server` or `kernels`, and the
server reads `checkpoint/` only as it would read any other Hugging Face folder.
"""

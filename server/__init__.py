"""The server: HTTP on one side, the engine process on the other."""

__version__ = "0.1.0"

"""Weak-driven post-training: the library. It knows nothing of Ray, HTTP or SQL; `services` does."""

__version__ = "0.1.0"

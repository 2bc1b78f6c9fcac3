"""Talking to a model: one engine at a time, kept by the reconcile loop, reached over Serve's HTTP proxy."""

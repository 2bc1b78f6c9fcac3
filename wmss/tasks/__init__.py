"""Synthetic tasks whose answers can be verified, for demos, tests and experiments."""

"""Benchmarks: each compares with a peer in the same run, checks equality first, and prints one JSON line per arm."""

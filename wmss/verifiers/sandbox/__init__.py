"""Untrusted Python, run where it can harm nobody: `host` builds the place, `tester` asks, `guest` is asked."""

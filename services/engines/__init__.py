"""Scoring and generation engines: a bounded number of Serve applications, one per checkpoint, used by jobs in turn."""

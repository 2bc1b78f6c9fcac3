"""Scoring and sampling engines: a bounded number of Serve applications, one per checkpoint, used by jobs in turn."""

"""Scoring and sampling engines: a bounded number of Serve applications, one per architecture, used by jobs in turn."""

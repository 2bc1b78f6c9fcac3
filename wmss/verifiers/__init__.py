"""Is a response right? Verifiers by rule, by mathematics, by tests in a sandbox; and whether they can be trusted."""

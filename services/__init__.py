"""The service around the library: HTTP, database, Ray. Nothing in `wmss` imports from here."""

"""The order of things: which phases a job has, and what each hands to the next."""

"""Finds what is wrong with a config or its data before a run, all of it at once."""

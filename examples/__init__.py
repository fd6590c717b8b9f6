"""Example programs, to run and to learn from."""

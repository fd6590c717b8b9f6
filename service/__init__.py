"""The server. Needs no torch."""

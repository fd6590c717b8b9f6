"""Stores of session records that outlive a server process, behind one protocol."""

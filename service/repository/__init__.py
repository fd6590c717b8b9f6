"""Bundles on disk: their contract, their checks, their loading."""

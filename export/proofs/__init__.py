"""Proofs that graphs must pass before their bundle is written."""

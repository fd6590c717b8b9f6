"""Metrics and logs: what the observer protocol reports to."""

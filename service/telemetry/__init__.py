"""Metrics, logs and traces: implements the observer protocols of `service.observer`."""

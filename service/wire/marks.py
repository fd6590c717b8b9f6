"""Headers with which Envoy marks calls. Imports nothing, because the launcher runs without gRPC."""

UNARY = "carousel-unary"
"""Marks a Connect call with a unary content type."""
CONNECT = "carousel-connect"
"""Marks any Connect call. Its value is the protocol version that the call asks for, or `-`. Envoy's filter removes the
original header."""

"""Headers by which an Envoy marks calls. Imports nothing: the launcher needs no gRPC."""

UNARY = "carousel-unary"
"""Of a call of Connect whose content type is of those that do not stream."""
CONNECT = "carousel-connect"
"""Of any call of Connect: the version of the protocol that it asks for, or `-`. Envoy's filter drops its own header."""

"""Headers by which an Envoy marks calls. Imports nothing: the launcher needs no gRPC."""

UNARY = "carousel-unary"
"""Of a call of Connect whose content type is of those that do not stream."""

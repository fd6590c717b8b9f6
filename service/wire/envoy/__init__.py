"""The wire with Envoy's HTTP/2: a launcher starts Envoy, which loads the server as an ASGI application (pyvoy)."""

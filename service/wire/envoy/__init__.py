"""The wire whose HTTP/2 is Envoy's: a launcher starts Envoy, which loads the server as an ASGI application (pyvoy)."""

"""The transports between clients and the services: gRPC's own library, or Envoy with this process inside."""

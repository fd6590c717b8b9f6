"""Translates between protobuf messages and domain objects, and serves the gRPC calls."""

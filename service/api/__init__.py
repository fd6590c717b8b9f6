"""Translates between messages and domain objects, and maps domain errors to gRPC statuses. Does not open ports: see
`wire`."""

"""`python -m service health`: asks a server on this machine whether it serves, for container health checks.

It reads the server's settings to find where the server listens. A server with TLS needs `health_port`.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.hosts import ANY
from service.settings import Settings


def probe(settings: Settings, timeout_s: float = 3.0) -> int:
    """Returns the exit code: 0 if it serves, 1 if it does not serve or not answer, 2 if health_port is missing."""
    port = settings.port if settings.health_port is None else settings.health_port
    if settings.tls_cert_file is not None and settings.health_port is None:
        print(
            "health_port is not set: a server with TLS answers health checks in plain text only on that port",
            file=sys.stderr,
        )
        return 2
    host = "127.0.0.1" if settings.host in ANY else settings.host
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            print(f"{host}:{port}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    print(name)
    return 0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1

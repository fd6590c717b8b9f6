"""The listeners for health probes and for metrics, the principals that may call, and where traces are sent."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc

from carousel._extras import how_to_install
from service.api.principals import Principals, TokenFileError, Unauthenticated
from service.hosts import is_loopback
from service.ports import reason_of, reserve
from service.process import StartError
from service.settings import Settings
from service.telemetry.exposition import Exposition

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from service.telemetry.tracing import Tracing

log = structlog.get_logger()

_CLOSE_IT = (
    "every client that can reach the port may do everything: set tokens_file (`python -m service token NAME` makes a"
    " token) and tls_cert_file with tls_key_file, or set host to 127.0.0.1"
)


def warn_if_open(settings: Settings) -> None:
    """Logs a warning if every client on the network can call the services without a token. Called without TLS only."""
    if not is_loopback(settings.host) and settings.tokens_file is None:
        log.warning("server.open_to_all", host=settings.host, hint=_CLOSE_IT)


class Reserved:
    """The ports for health and for metrics, reserved from the beginning of a start. Raises StartError."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        with ExitStack() as undo:
            self._health = None if settings.health_port is None else reserve(settings.host, settings.health_port)
            if self._health is not None:
                undo.callback(self._health.release)
            self._metrics = reserve(settings.host, settings.metrics_port) if settings.metrics else None
            undo.pop_all()

    def make_probes(self, servicer: health.aio.HealthServicer) -> tuple[grpc.aio.Server, int] | None:
        """Returns a server of gRPC's health service only, and its port; None without health_port. Raises StartError."""
        if self._health is None:
            return None
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        address = f"{self._host}:{self._health.release()}"
        try:
            return server, int(server.add_insecure_port(address))
        except RuntimeError as error:
            raise StartError(f"cannot listen on {address}: {error}") from error

    def make_exposition(self, registry: CollectorRegistry) -> Exposition | None:
        """Returns the server of metrics; None when the settings turn it off. Raises StartError."""
        if self._metrics is None:
            return None
        port = self._metrics.release()
        try:
            return Exposition(port, self._host, registry)
        except OSError as error:
            raise StartError(f"cannot listen on {self._host}:{port}: {reason_of(error)}") from error

    def release(self) -> None:
        """Releases the ports that were not used."""
        for one in (self._health, self._metrics):
            if one is not None:
                one.release()


def principals(settings: Settings) -> Principals | Unauthenticated:
    """Returns the principals that may call. Raises StartError when the file of principals is not valid."""
    if settings.tokens_file is None:
        return Unauthenticated()
    try:
        return Principals(
            settings.tokens_file,
            lambda error: log.error("tokens.not_reloaded", reason=str(error)),
            has_client_certificates=settings.tls_client_ca_file is not None,
            on_change=lambda: log.info("tokens.reloaded"),
        )
    except TokenFileError as error:
        raise StartError(str(error)) from error


def make_tracing(settings: Settings) -> Tracing | None:
    """Returns the exporter of traces; None when there are no traces. Raises StartError if the extra is missing."""
    kind = check_tracing(settings)
    return None if kind is None else kind(settings.otlp_endpoint, settings.trace_ratio)


def check_tracing(settings: Settings) -> type[Tracing] | None:
    """Returns the class that `make_tracing` uses; None when there are no traces. Raises StartError if the extra is
    missing."""
    if not settings.otlp_endpoint:
        return None
    try:
        from service.telemetry.tracing import Tracing  # noqa: PLC0415  # its packages may not be installed
    except ModuleNotFoundError as error:
        command = how_to_install("tracing", distribution="carousel-serving")
        raise StartError(f"otlp_endpoint needs {error.name}, which is not installed: {command}") from error
    return Tracing

"""gRPC's own library as the wire: runs wherever Python does."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from service import process
from service.certificates import Certificates, Pems, certificates_of
from service.listeners import warn_if_open
from service.ports import why_not
from service.process import StartError
from service.settings import Settings
from service.wire.json_calls import JsonInterceptor

_PENDING_CALLS = 10_000
"""Calls that may come at once while the server has as many as it may have."""


class GrpcioWire:
    """See `Wire`. Raises StartError when the certificates are no good."""

    name = "grpcio"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._certificates = certificates_of(settings)
        self._server: grpc.aio.Server | None = None

    def handle_signals(self, on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """The signals of this process. Main thread only."""
        process.handle_signals(on_leave, on_reload)

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> grpc.aio.Server:
        """The server, without services yet."""
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes + 1024 * 1024),
            # the first is where a call may be refused, at random, the second where it must be
            ("grpc.max_metadata_size", settings.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
            # Calls that have come and that the event loop has not taken up yet. Beyond the first number the transport
            # drops some at random, with CANCELLED and no reason (gRPC's defaults: 1,000 and 3,000), beyond the second
            # all. Both are more than the server takes at once, so that it is the server that refuses, with a reason and
            # a delay.
            ("grpc.server.max_pending_requests", settings.max_calls + _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", settings.max_calls + _PENDING_CALLS),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server behind it
            # Clients may ping as often as they like, also between calls; by default a third ping within 5 minutes ends
            # the connection. A flood of pings is bounded by the transport itself.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # The server pings too, so that a client that is gone without a word is noticed.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        self._server = grpc.aio.server(interceptors=(JsonInterceptor(), interceptor), options=options)
        return self._server

    async def start(self) -> int:
        """Listens, and serves."""
        server, address = self._server, f"{self._settings.host}:{self._settings.port}"
        assert server is not None  # noqa: S101  # `open` comes first
        if reason := why_not(self._settings.host, self._settings.port):
            raise StartError(f"cannot listen on {address}: {reason}")
        try:
            if self._certificates is not None:
                port = int(server.add_secure_port(address, _credentials(self._certificates)))
            else:
                warn_if_open(self._settings)
                port = int(server.add_insecure_port(address))
        except RuntimeError as error:
            raise StartError(f"cannot listen on {address}: {error}") from error
        await server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Ends the server."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def reload(self) -> None:
        """Reads the certificates again; new connections get what they say."""
        if self._certificates is not None:
            self._certificates.reload()


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """For `add_secure_port`. gRPC asks before every handshake, from threads of its own, what the files have."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        pems = certificates.changed()
        return None if pems is None else _configuration(pems)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(certificates.first),
        fetch,  # type: ignore[arg-type]  # None is what gRPC documents for "as before"
        require_client_authentication=certificates.first.authorities is not None,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.authorities)

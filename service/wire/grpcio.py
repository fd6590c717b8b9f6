"""gRPC's own library as the wire. It runs wherever Python runs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any, TypeAlias

import grpc
import structlog

from service import process
from service.background import Background
from service.certificates import Pems, certificates_of
from service.listeners import warn_if_open
from service.ports import Reservation, reserve
from service.process import StartError
from service.settings import Settings
from service.wire.decoding import DecodingInterceptor

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_PENDING_CALLS = 10_000
"""Calls that may arrive at once while the server already has its maximum number of calls."""

_END_S = 2.0
"""Seconds that a server whose loop has ended may take to stop."""
_AGAIN_S = 1.0
"""Seconds between two attempts to serve again."""


class Methods:
    """Collects what the generated `add_...Servicer_to_server` functions register, to register it with several servers
    one after the other."""

    def __init__(self) -> None:
        self._registered: dict[str, Mapping[str, Handler]] = {}
        self._generic: list[grpc.GenericRpcHandler] = []

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Collects the methods of a service."""
        self._registered[service] = handlers

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Collects handlers that find methods by name."""
        self._generic.extend(handlers)

    def give(self, server: grpc.aio.Server) -> None:
        """Registers everything with a server."""
        server.add_generic_rpc_handlers(tuple(self._generic))
        for service, handlers in self._registered.items():
            server.add_registered_method_handlers(service, dict(handlers))


class GrpcioWire:
    """Implements `Wire`. Raises StartError when the certificates are not valid."""

    name = "grpcio"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.certificates = certificates_of(settings)
        self._pems = None if self.certificates is None else self.certificates.first
        self._interceptors: tuple[grpc.aio.ServerInterceptor, ...] = ()
        self._methods = Methods()
        self._port = settings.port
        self._reservation: Reservation | None = None
        self._server: grpc.aio.Server | None = None
        self._background = Background()
        self._is_stopping = False

    def handle_signals(self, on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """Handles the signals of this process. Main thread only."""
        process.handle_signals(on_leave, on_reload)

    def reserve(self) -> None:
        """Reserves the port until `start`."""
        self._reservation = reserve(self._settings.host, self._settings.port)
        self._port = self._reservation.port

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> Methods:
        """Returns the registry of what the servers will serve."""
        self._interceptors = (interceptor, DecodingInterceptor())
        return self._methods

    def reset(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Cancels gRPC's tasks for a call. gRPC's core then ends the call and drops its data, because nothing refers to
        the call any more. If these tasks are not found, the call's error waits, as usual, until the client reads or
        disconnects."""
        handling = asyncio.current_task()
        assert handling is not None  # noqa: S101  # a handler runs in a task
        waiting = [task for task in asyncio.all_tasks() if _waits_for_end(task, handling)]
        for task in (*waiting, handling) if waiting else ():
            task.cancel()

    async def start(self) -> int:
        """Listens and serves."""
        if self._reservation is not None:
            self._reservation.release()
        if self._pems is None:
            warn_if_open(self._settings)
        await self._serve()
        return self._port

    async def stop(self, grace_s: float) -> None:
        """Stops the server."""
        self._is_stopping = True
        await self._background.stop()
        if self._reservation is not None:
            self._reservation.release()
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _serve(self) -> None:
        server = grpc.aio.server(interceptors=self._interceptors, options=self._options())
        self._methods.give(server)
        address = f"{self._settings.host}:{self._port}"
        try:
            if self._pems is None:
                self._port = int(server.add_insecure_port(address))
            else:
                self._port = int(server.add_secure_port(address, self._credentials(self._pems)))
        except RuntimeError as error:
            raise StartError(f"cannot listen on {address}: {error}") from error
        before = asyncio.all_tasks()
        await server.start()
        self._server = server
        for task in asyncio.all_tasks() - before:
            if not isinstance(task.get_coro(), CoroutineType):  # gRPC's own tasks: their coroutines are not Python's
                task.add_done_callback(self._on_ended)

    def _on_ended(self, task: asyncio.Task[Any]) -> None:
        """Called when gRPC's loop has ended; serves again. In grpcio 1.85, a call whose path is not UTF-8 ends the loop
        with an exception: after it nothing listens, and all calls have ended."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._is_stopping:
            log.error("wire.ended", reason=str(error)[:200], effect="all calls ended; serving again")
            self._background.start("serve", self._serve_again())

    async def _serve_again(self) -> None:
        dead = self._server
        assert dead is not None  # noqa: S101  # it was set before its loop ended
        with suppress(Exception):  # it raises the error of its loop again
            await asyncio.wait_for(dead.stop(0), _END_S)
        while True:
            try:
                await self._serve()
            except StartError as error:  # another process took the port meanwhile
                log.error("wire.cannot_serve", reason=str(error)[:200])
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    def _options(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes + 1024 * 1024),
            # Above the first size gRPC refuses some calls at random, above the second it refuses all.
            ("grpc.max_metadata_size", settings.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
            # These limit the calls that have arrived and that the event loop has not accepted yet. Above the first
            # number the transport drops some at random, with CANCELLED and no reason (gRPC's defaults: 1,000 and
            # 3,000), above the second all. Both exceed the number of calls that the server accepts, so that the server
            # itself refuses calls, with a reason and a retry delay.
            ("grpc.server.max_pending_requests", settings.max_calls + _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", settings.max_calls + _PENDING_CALLS),
            ("grpc.so_reuseport", 0),  # otherwise a second server could share a port in use, without an error
            # Clients may ping as often as they like, also between calls. By default, a third ping within 5 minutes ends
            # the connection. The transport itself limits floods of pings.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # The server also pings, to notice a client that has disappeared.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]

    def _credentials(self, pems: Pems) -> grpc.ServerCredentials:
        """Returns credentials for `add_secure_port`. gRPC calls `fetch` before every handshake, in its own threads."""
        certificates = self.certificates
        assert certificates is not None  # noqa: S101  # because there are pems

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            changed = certificates.changed()
            if changed is None:
                return None
            self._pems = changed
            return _configuration(changed)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(pems),
            fetch,  # type: ignore[arg-type]  # gRPC documents None as "unchanged"
            require_client_authentication=pems.authorities is not None,
        )

    def reload(self) -> None:
        """Reads the certificates again. New connections use them."""
        if self.certificates is not None:
            self.certificates.reload()


def _waits_for_end(task: asyncio.Task[Any], handling: asyncio.Task[Any]) -> bool:
    """Whether a task is gRPC's task that awaits the end of the call that the task `handling` handles."""
    coroutine = task.get_coro()
    if getattr(coroutine, "__name__", None) != "_schedule_rpc_coro":
        return False
    return any(handling in gc.get_referents(variables) for variables in gc.get_referents(coroutine))


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.authorities)

"""gRPC's own library as the wire: runs wherever Python does."""

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
"""Calls that may come at once while the server has as many as it may have."""

_END_S = 2.0
"""That a server whose loop has ended may take to stop."""
_AGAIN_S = 1.0
"""Between two attempts to serve again."""


class Methods:
    """What generated `add_...Servicer_to_server` register, for one server after the other."""

    def __init__(self) -> None:
        self._registered: dict[str, Mapping[str, Handler]] = {}
        self._generic: list[grpc.GenericRpcHandler] = []

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Registers the methods of a service."""
        self._registered[service] = handlers

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Registers what finds methods by their names."""
        self._generic.extend(handlers)

    def give(self, server: grpc.aio.Server) -> None:
        """Registers all of them with a server."""
        server.add_generic_rpc_handlers(tuple(self._generic))
        for service, handlers in self._registered.items():
            server.add_registered_method_handlers(service, dict(handlers))


class GrpcioWire:
    """See `Wire`. Raises StartError when the certificates are no good."""

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
        """The signals of this process. Main thread only."""
        process.handle_signals(on_leave, on_reload)

    def reserve(self) -> None:
        """Keeps the port until `start`."""
        self._reservation = reserve(self._settings.host, self._settings.port)
        self._port = self._reservation.port

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> Methods:
        """What the servers will serve."""
        self._interceptors = (interceptor, DecodingInterceptor())
        return self._methods

    def reset(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Cancels the tasks that gRPC has for a call: its core ends a call that nothing refers to any more, and drops
        what it has of it. Where they cannot be found the error waits, as any does, until the client reads or leaves."""
        handling = asyncio.current_task()
        assert handling is not None  # noqa: S101  # that of a handler
        waiting = [task for task in asyncio.all_tasks() if _waits_for_end(task, handling)]
        for task in (*waiting, handling) if waiting else ():
            task.cancel()

    async def start(self) -> int:
        """Listens, and serves."""
        if self._reservation is not None:
            self._reservation.release()
        if self._pems is None:
            warn_if_open(self._settings)
        await self._serve()
        return self._port

    async def stop(self, grace_s: float) -> None:
        """Ends the server."""
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
            if not isinstance(task.get_coro(), CoroutineType):  # gRPC's own, which are no coroutines of Python's
                task.add_done_callback(self._on_ended)

    def _on_ended(self, task: asyncio.Task[Any]) -> None:
        """gRPC's loop has ended. A call whose path is not UTF-8 ends that of grpcio 1.85 with an exception: nothing
        listens from then on, and all calls are over."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._is_stopping:
            log.error("wire.ended", reason=str(error)[:200], effect="all calls ended; serving again")
            self._background.start("serve", self._serve_again())

    async def _serve_again(self) -> None:
        dead = self._server
        assert dead is not None  # noqa: S101  # it has ended
        with suppress(Exception):  # what its loop raised, again
            await asyncio.wait_for(dead.stop(0), _END_S)
        while True:
            try:
                await self._serve()
            except StartError as error:  # somebody else took the port meanwhile
                log.error("wire.cannot_serve", reason=str(error)[:200])
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    def _options(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [
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

    def _credentials(self, pems: Pems) -> grpc.ServerCredentials:
        """For `add_secure_port`. gRPC asks before every handshake, from threads of its own, what the files have."""
        certificates = self.certificates
        assert certificates is not None  # noqa: S101  # there are some

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            changed = certificates.changed()
            if changed is None:
                return None
            self._pems = changed
            return _configuration(changed)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(pems),
            fetch,  # type: ignore[arg-type]  # None is what gRPC documents for "as before"
            require_client_authentication=pems.authorities is not None,
        )

    def reload(self) -> None:
        """Reads the certificates again; new connections get what they say."""
        if self.certificates is not None:
            self.certificates.reload()


def _waits_for_end(task: asyncio.Task[Any], handling: asyncio.Task[Any]) -> bool:
    """Whether a task is gRPC's that awaits the end of the call which another of its tasks handles."""
    coroutine = task.get_coro()
    if getattr(coroutine, "__name__", None) != "_schedule_rpc_coro":
        return False
    return any(handling in gc.get_referents(variables) for variables in gc.get_referents(coroutine))


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.authorities)

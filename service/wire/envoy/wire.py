"""Envoy as the wire: the part in the server inside Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

from service.background import Background
from service.certificates import certificates_of
from service.hosts import ANY, in_url, is_loopback
from service.listeners import warn_if_open
from service.settings import Settings
from service.wire.envoy.browsers import Browsers
from service.wire.envoy.configuration import MARK
from service.wire.envoy.host import Host
from service.wire.envoy.page import Page

log = structlog.get_logger()

_LOOK_S = 1.0
"""Seconds between two checks whether the certificate files have changed."""


class EnvoyWire:
    """Implements `Wire`. folder: the launcher's, which Envoy watches. Raises StartError if certificates are not
    valid."""

    name = "envoy"

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.certificates = certificates_of(settings)
        self.host: Host | None = None
        """Handles requests; None until `open`."""
        self._background = Background()
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._is_leaving = False
        self._on_leave: Callable[[], None] | None = None
        self._on_reload: Callable[[], None] | None = None
        self.is_ready = asyncio.Event()
        """Set when Envoy may accept clients."""

    def handle_signals(self, on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """Stores the callbacks: the launcher handles the signals and forwards them."""
        self._on_leave, self._on_reload = on_leave, on_reload
        if self._is_leaving:
            on_leave()

    def leave(self) -> None:
        """Called when the launcher received a signal to end, possibly before there is a server."""
        self._is_leaving = True
        if self._on_leave is not None:
            self._on_leave()

    def read_again(self) -> None:
        """Called when the launcher received a signal to read files again."""
        if self._on_reload is not None:
            self._on_reload()

    def listening(self, port: int) -> None:
        """Called when Envoy accepts connections on `port`."""
        if not self._port.done():
            self._port.set_result(port)

    def reserve(self) -> None:
        """Does nothing: the launcher has reserved the port."""

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> Host:
        """Returns the host, which has no services yet."""
        settings = self._settings
        self.host = Host(
            interceptor,
            Browsers(settings.host, settings.allowed_origins, settings.page_hosts if settings.page else None),
            Page() if settings.page else None,
            max_message_bytes=settings.max_message_bytes,
            max_metadata_bytes=settings.max_metadata_bytes,
            has_client_certificates=settings.tls_client_ca_file is not None,
        )
        return self.host

    @staticmethod
    def reset(context: Any) -> None:
        """See `Wire.reset`. pyvoy does not end a stream, not even by a reset, before its client reads."""
        context.reset()

    async def start(self) -> int:
        """Lets Envoy listen, and waits until it does."""
        if self.certificates is None:
            warn_if_open(self._settings)
        self.is_ready.set()
        port = await self._port
        if self._settings.page:
            log.info("page.served", url=self._url(port))
        if self.certificates is not None:
            self._background.repeat("certificates", _LOOK_S, self._look)
        return port

    def _url(self, port: int) -> str:
        """Returns the page's URL, under localhost if possible, else under the address that the server listens on."""
        host = self._settings.host
        host = "localhost" if is_loopback(host) or host in ANY else in_url(host)
        return f"{'http' if self._settings.tls_cert_file is None else 'https'}://{host}:{port}/"

    async def stop(self, grace_s: float) -> None:
        """Ends the calls. The launcher ends Envoy."""
        await self._background.stop()
        if self.host is not None:
            await self.host.stop(grace_s)

    def reload(self) -> None:
        """Reads the certificates again. If they are valid, makes Envoy read them as well."""
        if self.certificates is not None and self.certificates.reload():
            self._have_envoy_read()

    async def _look(self) -> None:
        if self.certificates is not None and await asyncio.to_thread(self.certificates.changed) is not None:
            self._have_envoy_read()

    def _have_envoy_read(self) -> None:
        """Makes Envoy read the files, which were checked before. It does so when a file is moved into its folder."""
        new = self._folder / f"{MARK}.new"
        new.touch()
        new.replace(self._folder / MARK)

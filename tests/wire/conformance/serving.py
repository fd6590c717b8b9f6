"""Serves the service of `servicer.py` with the flags of `python -m service`, on the wire that they choose. The wires,
the launcher and the configuration are the server's own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from service import envoy_application, process
from service.commands import read_settings
from service.settings import Settings
from service.telemetry import logging
from service.wire.base import Wire
from service.wire.envoy import launcher
from service.wire.grpcio import GrpcioWire
from tests.wire.conformance.servicer import Conformance

log = structlog.get_logger()


class _Open(grpc.aio.ServerInterceptor):
    """Passes every call on unchanged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return await continuation(handler_call_details)


class _Server:
    """Stands for `service.server.Server`, with the service of `servicer.py`."""

    def __init__(self, settings: Settings, wire: Wire) -> None:
        self._settings = settings
        self._wire = wire

    async def run(self) -> None:
        leave = asyncio.Event()
        self._wire.handle_signals(leave.set, lambda: None)
        Conformance().add_to(self._wire.open(_Open()))
        port = await self._wire.start()
        log.info("server.started", wire=self._wire.name, port=port, metrics_port=0)
        await leave.wait()
        await self._wire.stop(self._settings.shutdown_grace_s)


envoy_application.Server = _Server  # type: ignore[assignment,attr-defined]
app = envoy_application.app
"""The application that Envoy loads."""


def main() -> int:
    """Runs the server. Returns the exit code."""
    settings = read_settings(sys.argv[1:])
    assert settings is not None
    logging.configure(settings.log_format, settings.log_level)
    if settings.wire == "envoy":
        launcher.APPLICATION = "tests.wire.conformance.serving:app"
        return launcher.serve(settings, sys.argv[1:])
    process.run(_Server(settings, GrpcioWire(settings)).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

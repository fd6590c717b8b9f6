"""The service of `servicer.py` in a process of its own, on the wire that the settings choose: the server's own wires,
launcher and configuration, with another server behind them. Takes the flags that `python -m service` takes."""

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
    """Leaves every call as it is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return await continuation(handler_call_details)


class _Server:
    """As `service.server.Server`, with the other service."""

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
"""What Envoy loads."""


def main() -> int:
    """The process's exit code."""
    settings = read_settings(sys.argv[1:])
    assert settings is not None
    logging.configure(settings.log_format, settings.log_level)
    if settings.wire == "envoy":
        launcher._APPLICATION = "tests.wire.conformance.serving:app"
        return launcher.serve(settings, sys.argv[1:])
    process.run(_Server(settings, GrpcioWire(settings)).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

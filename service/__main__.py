"""`python -m service`: reads the settings, then checks or serves. A command as first argument runs that command."""

from __future__ import annotations

import signal
import sys

_HANGUP = None if sys.platform == "win32" else signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""The earlier handler of SIGHUP. Until the server handles SIGHUP, it is ignored: it must not end the process while
modules are imported."""

import asyncio
import os

import structlog

from service import process
from service.commands import COMMANDS, read_settings, refused
from service.process import StartError
from service.settings import Settings
from service.telemetry import logging
from service.variables import unknown_variables
from service.wire import choice


def main() -> int:
    """Returns the exit code: 0 after a clean stop, 1 if the start or a check failed, 2 for wrong settings."""
    first, *others = sys.argv[1:] or [""]
    if first in COMMANDS:
        _restore_hangup()
        return COMMANDS[first](others)
    if first and not first.startswith("-"):
        return refused(first)
    settings = read_settings(sys.argv[1:])
    if settings is None:
        return 2
    if settings.check:
        from service.check import check  # noqa: PLC0415  # Envoy's launcher does not need it

        _restore_hangup()
        return check(settings)
    logging.configure(settings.log_format, settings.log_level)
    for variable, nearest in unknown_variables(os.environ):
        structlog.get_logger().warning("settings.unknown_variable", variable=variable, nearest=nearest)
    try:
        return run(settings)
    except StartError as error:
        structlog.get_logger().error("server.cannot_start", reason=str(error))
        return 1


def _restore_hangup() -> None:
    """Restores SIGHUP for commands that do not serve, so that they end with their terminal."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, _HANGUP)


def run(settings: Settings) -> int:
    """Serves on the wire that the settings choose, until a signal arrives. Returns the exit code. Raises StartError,
    and the error that crashed an engine."""
    wire, why = choice.choose(settings)
    structlog.get_logger().info("wire.chosen", wire=wire, why=why)
    if wire == "envoy":
        from service.wire.envoy import launcher  # noqa: PLC0415  # works on Linux only

        return launcher.serve(settings, sys.argv[1:])
    process.run(serve(settings))
    return 0


async def serve(settings: Settings) -> None:
    """Serves on gRPC's own library until a signal arrives. Raises StartError, and the error that crashed an engine."""
    asyncio.get_running_loop().set_exception_handler(logging.loop_exception)
    from service.server import Server  # noqa: PLC0415  # Envoy's launcher does not need it
    from service.wire.grpcio import GrpcioWire  # noqa: PLC0415

    await Server(settings, GrpcioWire(settings)).run()


if __name__ == "__main__":
    sys.exit(main())

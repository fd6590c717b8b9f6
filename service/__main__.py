"""`python -m service`: reads the settings, then checks or serves; or does what its first argument, a command, names."""

from __future__ import annotations

import signal
import sys

_HANGUP = None if sys.platform == "win32" else signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""What SIGHUP did before. Until the server handles it there is nothing to read again, and what comes while modules are
imported must not end the process."""

import asyncio
import os

import structlog

from service import process
from service.commands import COMMANDS, read_settings, refused
from service.process import StartError
from service.settings import Settings, unknown_variables
from service.telemetry import logging
from service.wire import choice
from service.wire.envoy.library import MissingError


def main() -> int:
    """The process's exit code: 0 after a clean stop, 1 when it could not start or a check failed, 2: settings."""
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
        from service.check import check  # noqa: PLC0415  # Envoy's launcher does without

        _restore_hangup()
        return check(settings)
    logging.configure(settings.log_format, settings.log_level)
    for variable, nearest in unknown_variables(os.environ):
        structlog.get_logger().warning("settings.unknown_variable", variable=variable, nearest=nearest)
    try:
        return run(settings)
    except (StartError, MissingError) as error:
        structlog.get_logger().error("server.cannot_start", reason=str(error))
        return 1


def _restore_hangup() -> None:
    """For what serves nothing, and ends with its terminal."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, _HANGUP)


def run(settings: Settings) -> int:
    """Serves on the wire that the settings choose, until a signal comes. Raises StartError, MissingError, and whatever
    crashed an engine."""
    wire, why = choice.choose(settings)
    structlog.get_logger().info("wire.chosen", wire=wire, why=why)
    if wire == "envoy":
        from service.wire.envoy import launcher  # noqa: PLC0415  # Linux's alone

        return launcher.serve(settings, sys.argv[1:])
    process.run(serve(settings))
    return 0


async def serve(settings: Settings) -> None:
    """Serves until a signal comes. Raises StartError, and whatever crashed an engine."""
    asyncio.get_running_loop().set_exception_handler(logging.loop_exception)
    from service.server import Server  # noqa: PLC0415  # the launcher of the other wire does without
    from service.wire.grpcio import GrpcioWire  # noqa: PLC0415

    await Server(settings, GrpcioWire(settings)).run()


if __name__ == "__main__":
    sys.exit(main())

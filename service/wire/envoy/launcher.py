"""Starts Envoy with the server inside. Handles signals and ends Envoy, which the server inside cannot do.

Python inside Envoy runs on one of Envoy's threads and cannot handle signals there. Envoy itself ends open streams at
once on SIGTERM. So this process receives the signals and forwards them to the server over a socket. When the server has
ended, this process ends Envoy. Envoy is killed whenever this process ends, and this process ends when Envoy ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import structlog

from service import process
from service.certificates import certificates_of
from service.ports import Reservation, addresses, reserve
from service.process import StartError
from service.settings import Settings
from service.wire.envoy import configuration, folder, library
from service.wire.envoy.link import VARIABLE, Link

log = structlog.get_logger()

APPLICATION = f"{__name__.partition('.wire.')[0]}.envoy_application:app"
"""The ASGI application that Envoy loads."""
_PR_SET_PDEATHSIG = 1
_ASK_S = 0.02
_END_S = 5.0
"""Seconds that Envoy gets to end after the server has ended."""
_LEVELS = {"warning": "warning", "error": "error", "critical": "error"}
_EXPECTED = (
    "caught ENVOY_SIGTERM",
    "caught SIGTERM",
    "marked as work-in-progress",
)


def serve(settings: Settings, arguments: list[str]) -> int:
    """Serves until a signal arrives. Returns the exit code. arguments: of the command line, which the server parses
    again. Raises StartError. Main thread only."""
    reservation = reserve(settings.host, settings.port)
    if not settings.port:
        reservation.release()  # Envoy binds a free port itself
    try:
        return _serve(settings, arguments, reservation)
    finally:
        reservation.release()


def _serve(settings: Settings, arguments: list[str], reservation: Reservation) -> int:
    certificates_of(settings)  # checks them here, because Envoy's own error messages are less clear
    with ExitStack() as stack:
        try:
            place = stack.enter_context(folder.made())
            for name, content in configuration.secrets(settings, place).items():
                (place / name).write_text(json.dumps(content))
            made = configuration.configuration(
                settings,
                place,
                module=library.module_path(),
                application=APPLICATION,
                where=addresses(settings.host, settings.port),
            )
        except (library.MissingError, OSError) as error:
            raise StartError(f"wire = envoy: {error}") from error
        return asyncio.run(_Launcher(place, made, arguments, reservation).run())


class _Launcher:
    def __init__(self, place: Path, made: dict[str, Any], arguments: list[str], reservation: Reservation) -> None:
        self._reservation = reservation
        self._place = place
        self._made = made
        self._arguments = arguments
        self._code: int | None = None
        self._is_listening = False
        self._link: Link | None = None

    async def run(self) -> int:
        """Runs Envoy until it ends. Returns the exit code."""
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        os.set_inheritable(write_end, True)
        envoy = await asyncio.create_subprocess_exec(
            library.binary_path(),
            *("--config-yaml", json.dumps(self._made), "--concurrency", "1", "--disable-hot-restart"),
            *("--log-level", "warning", "--log-format", "%l|%n|%j", "--log-path", f"/dev/fd/{write_end}"),
            env={**library.environment(), VARIABLE: str(theirs.fileno())},
            pass_fds=(theirs.fileno(), write_end),
            preexec_fn=_end_with(os.getpid()),
            start_new_session=True,  # so that only the launcher receives Ctrl-C
        )
        theirs.close()
        os.close(write_end)
        link = self._link = await Link.over(ours)
        link.send("serve", [self._arguments, str(self._place), sys.executable])
        process.handle_signals(lambda: link.send("leave"), lambda: link.send("reload"))
        with os.fdopen(read_end, errors="replace") as envoys_log:
            tasks = [
                asyncio.create_task(asyncio.to_thread(_forward, envoys_log)),
                asyncio.create_task(self._tell_port()),
                asyncio.create_task(self._stop_with_server(envoy)),
            ]
            ended = await envoy.wait()
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._code is None:
            log.error("envoy.ended", code=ended, signal=_signal_of(ended))
            return 1
        return self._code

    async def _stop_with_server(self, envoy: asyncio.subprocess.Process) -> None:
        """Ends Envoy when the server has ended. An Envoy whose server did not start is killed: if it were told that, it
        would write lines of its own to stderr."""
        assert self._link is not None  # noqa: S101  # set by `run`
        async for kind, value in self._link.messages():
            if kind == "ended":
                self._code = value
                if not self._is_listening:
                    envoy.kill()
                    return
                envoy.terminate()
                try:
                    await asyncio.wait_for(envoy.wait(), _END_S)
                except TimeoutError:
                    envoy.kill()
                return

    async def _tell_port(self) -> None:
        """Waits until Envoy listens, and sends its port to the server."""
        assert self._link is not None  # noqa: S101  # set by `run`
        while (port := await _listening(self._place / folder.SOCKET)) is None:  # noqa: ASYNC110  # ends with Envoy
            await asyncio.sleep(_ASK_S)
        self._is_listening = True
        self._reservation.release()
        self._link.send("listening", port)


def _end_with(parent: int) -> Any:
    """Returns a function for the child process before it becomes Envoy: the child is killed when its parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has ended meanwhile
            os._exit(1)

    return prepare


async def _listening(admin: Path) -> int | None:
    """Returns the port on which Envoy listens; None if it does not listen yet."""
    try:
        reader, writer = await asyncio.open_unix_connection(admin)
    except OSError:
        return None
    try:
        writer.write(b"GET /listeners?format=json HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        statuses = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1]).get("listener_statuses", [])
        return int(statuses[0]["local_address"]["socket_address"]["port_value"]) if statuses else None
    except (OSError, ValueError, KeyError):
        return None
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _forward(lines: IO[str]) -> None:
    """Writes Envoy's log lines to the server's log until Envoy ends."""
    for line in lines:
        level, _, rest = line.rstrip("\n").partition("|")
        logger, _, message = rest.partition("|")
        if not any(known in message for known in _EXPECTED):
            getattr(log, _LEVELS.get(level, "info"))("envoy.message", logger=logger, message=message[:4000])


def _signal_of(code: int) -> str | None:
    return signal.Signals(-code).name if code < 0 else None

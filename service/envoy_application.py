"""The server as the ASGI application that Envoy loads with pyvoy. `service/wire/envoy/launcher.py` starts Envoy."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import structlog
from pydantic_settings import CliApp

from service.process import StartError
from service.server import Server
from service.settings import Settings
from service.telemetry import logging
from service.wire.envoy.call import Event, Receive, Send
from service.wire.envoy.library import FOR_ENVOY_ALONE
from service.wire.envoy.link import Link
from service.wire.envoy.wire import EnvoyWire

log = structlog.get_logger()


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Handles one request, or, for the scope `lifespan`, runs the whole server."""
    if scope["type"] == "http":
        host = _HOLDER.host()
        if host is not None:
            await host.serve(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _HOLDER.live(receive, send)


class _Holder:
    """Holds the server of this process."""

    def __init__(self) -> None:
        self._wire: EnvoyWire | None = None

    def host(self) -> Any:
        """Returns the `Host` that handles requests; None until the server has made it."""
        return None if self._wire is None else self._wire.host

    async def live(self, receive: Receive, send: Send) -> None:
        """Runs the server from Envoy's start to Envoy's end."""
        await receive()  # lifespan.startup
        for name in FOR_ENVOY_ALONE:  # child processes must not inherit Envoy's variables
            os.environ.pop(name, None)
        asyncio.get_running_loop().set_exception_handler(_loop_exception)
        link = await Link.to_launcher()
        messages = link.messages()
        _, (arguments, folder, interpreter) = await anext(messages)
        sys.executable = interpreter  # inside Envoy, Python would set it to the first Python on PATH
        settings = CliApp.run(Settings, cli_args=arguments)  # the launcher has already validated them
        logging.configure(settings.log_format, settings.log_level)
        code = 1
        try:
            wire = self._wire = EnvoyWire(settings, Path(folder))
            running = asyncio.create_task(Server(settings, wire).run())
            listener = asyncio.create_task(_obey(messages, wire))
            ready = asyncio.create_task(wire.is_ready.wait())
            await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                await send({"type": "lifespan.startup.complete"})
            await running
            listener.cancel()
            code = 0
        except StartError as error:
            log.error("server.cannot_start", reason=str(error))
        except BaseException as error:
            log.error("server.crashed", exc_info=error)
        sys.stderr.flush()
        link.send("ended", code)  # the launcher then ends Envoy; Envoy also ends with the launcher's process
        await receive()  # lifespan.shutdown, which a server that did not start never receives: the launcher kills Envoy
        await send({"type": "lifespan.shutdown.complete"})


def _loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs errors that nothing awaits, except two that pyvoy 1.3.0 reports for calls whose client has disconnected: a
    cancelled `receive`, and a call that ended normally all the same."""
    is_pyvoys = "_pyvoy." in repr(context.get("handle"))
    if not (is_pyvoys and type(context.get("exception")).__name__ in {"InvalidStateError", "PanicException"}):
        logging.loop_exception(loop, context)


async def _obey(messages: Any, wire: EnvoyWire) -> None:
    async for kind, value in messages:
        if kind == "listening":
            wire.listening(value)
        elif kind == "leave":
            wire.leave()
        elif kind == "reload":
            wire.read_again()


_HOLDER = _Holder()

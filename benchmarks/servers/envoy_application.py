"""The shortest way to serve a stream handler inside Envoy. `on_envoy` loads this module there.

It supports one method, and no metadata, deadlines, compression or limits.
"""

from __future__ import annotations

import gc
import json
import os
from importlib import import_module
from typing import Any

import grpc

from benchmarks.servers.host import Handler
from carousel.v1 import inference_pb2 as pb
from service.wire.envoy.call import Event, Receive, Send

VARIABLE = "BENCHMARK_SERVER"
"""The environment variable with the server's name and its arguments, as a JSON array."""


class Context:
    """The part of `grpc.aio.ServicerContext` that handlers use."""

    __slots__ = ("_at", "_is_last", "_receive", "_rest", "_send")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._rest = b""
        self._at = 0
        self._is_last = False

    async def read(self) -> Any:
        """Returns the next message, or `grpc.aio.EOF`."""
        while True:
            rest, at = self._rest, self._at
            begin = at + 5
            if len(rest) >= begin:
                end = begin + int.from_bytes(rest[at + 1 : begin], "big")
                if len(rest) >= end:
                    self._at = end
                    return pb.StreamRequest.FromString(rest[begin:end])
            if self._is_last:
                return grpc.aio.EOF
            event = await self._receive()
            if event["type"] == "http.disconnect":
                return grpc.aio.EOF
            self._rest, self._at = rest[at:] + event["body"], 0
            self._is_last = not event["more_body"]

    async def write(self, message: Any) -> None:
        """Sends a response."""
        data = message.SerializeToString()
        body = b"\0" + len(data).to_bytes(4, "big") + data
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


class _Application:
    """Holds the handler, which is made when Envoy starts."""

    def __init__(self) -> None:
        self._handler: Handler | None = None

    async def live(self, receive: Receive, send: Send) -> None:
        """Handles the scope `lifespan`, from Envoy's start to its end."""
        await receive()
        name, *arguments = json.loads(os.environ[VARIABLE])
        self._handler = import_module(f"benchmarks.servers.{name}").make(arguments)
        gc.freeze()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def serve(self, receive: Receive, send: Send) -> None:
        """Serves one stream."""
        headers = [(b"content-type", b"application/grpc")]
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
        assert self._handler is not None  # noqa: S101  # Envoy completes the startup before it serves
        await self._handler(None, Context(receive, send))  # type: ignore[arg-type]  # has only what handlers use
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False})


_APPLICATION = _Application()


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Serves one stream or, for the scope `lifespan`, handles Envoy's start and end."""
    if scope["type"] == "lifespan":
        await _APPLICATION.live(receive, send)
    else:
        await _APPLICATION.serve(receive, send)

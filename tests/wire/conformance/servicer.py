"""A service whose methods do what each request says, also what no correct servicer does.

All four kinds of methods use `google.protobuf.Struct`. The field `do` of a request selects the action:

- `echo` (the default): the response is the request; on a stream, one response for each request. `ClientStream` returns
  their count.
- `end`: ends with the status `code`, `details` and the metadata `trailers` (pairs; binary values in hexadecimal), after
  `after` responses. `how` is `abort` or `set`.
- `raise`: raises RuntimeError after `after` responses. `cancel`: raises CancelledError.
- `wait`: waits until the call is cancelled. `tell` reports its state under `name`.
- `flood`: writes `count` responses of `size` bytes, and keeps the number of written ones under `name`.
- `ignore`: reads nothing more until a request with `do` = `release` arrives for `name`.
- `pad`: returns one response of `size` bytes.
- `headers`: sends the initial metadata `headers` at once, then echoes.
- `describe`: returns the metadata, the peer and the remaining seconds of the call's context, and the number of tasks.
- `tell`: returns what is kept under `name`.
- `die`: ends the process with the signal `signal`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct

SERVICE = "carousel.test.Conformance"
METHODS = ("Unary", "ServerStream", "ClientStream", "Stream")


def struct(**fields: Any) -> Struct:
    """Returns a message with these fields."""
    message = Struct()
    message.update(fields)
    return message


def pairs_of(pairs: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Returns metadata from a request."""
    return tuple((name, bytes.fromhex(value) if name.endswith("-bin") else value) for name, value in pairs or ())


class Conformance:
    """The service. Event loop only."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._released: dict[str, asyncio.Event] = {}

    def add_to(self, server: Any) -> None:
        """Registers the methods, as generated code does."""
        makers: Any = (
            (grpc.unary_unary_rpc_method_handler, self._unary),
            (grpc.unary_stream_rpc_method_handler, self._server_stream),
            (grpc.stream_unary_rpc_method_handler, self._client_stream),
            (grpc.stream_stream_rpc_method_handler, self._stream),
        )
        handlers = {
            name: make(behaviour, Struct.FromString, Struct.SerializeToString)
            for name, (make, behaviour) in zip(METHODS, makers, strict=True)
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    async def _unary(self, request: Struct, context: Any) -> Struct:
        return await self._one(request, context)

    async def _server_stream(self, request: Struct, context: Any) -> None:
        await self._many(request, context)

    async def _client_stream(self, requests: AsyncIterator[Struct], context: Any) -> Struct:
        number, last = 0, struct()
        async for request in requests:
            number, last = number + 1, request
        answer = await self._one(last, context)
        return answer if "do" in last else struct(count=number)

    async def _stream(self, requests: AsyncIterator[Struct], context: Any) -> None:
        async for request in requests:
            await self._many(request, context)

    async def _many(self, request: Struct, context: Any) -> None:
        asked: dict[str, Any] = dict(request)
        for _ in range(int(asked.get("after", 0))):
            await context.write(struct(before=True))
        if asked.get("do") == "flood":
            await self._flood(asked, context)
        elif asked.get("do") == "ignore":
            event = self._released.setdefault(asked["name"], asyncio.Event())
            await event.wait()
        else:
            await context.write(await self._one(request, context))

    async def _one(self, request: Struct, context: Any) -> Struct:
        asked: dict[str, Any] = dict(request)
        match asked.get("do", "echo"):
            case "end":
                await self._end(asked, context)
            case "raise":
                raise RuntimeError(asked["text"])
            case "cancel":
                raise asyncio.CancelledError
            case "wait":
                await self._wait(asked["name"], context)
            case "pad":
                return struct(padding="x" * int(asked["size"]))
            case "headers":
                await context.send_initial_metadata(pairs_of(asked["headers"]))
            case "describe":
                return self._describe(context)
            case "tell":
                return struct(kept=self._kept.get(asked["name"]))
            case "release":
                self._released[asked["name"]].set()
            case "die":
                os.kill(os.getpid(), int(asked["signal"]))
        return request

    async def _end(self, asked: dict[str, Any], context: Any) -> None:
        trailers = pairs_of(asked.get("trailers"))
        number = int(asked["code"])
        code: Any = next((known for known in grpc.StatusCode if known.value[0] == number), number)
        if asked.get("how") == "set":
            context.set_code(code)
            context.set_details(asked.get("details", ""))
            context.set_trailing_metadata(trailers)
        else:
            await context.abort(code, asked.get("details", ""), trailers)

    async def _wait(self, name: str, context: Any) -> None:
        self._kept[name] = "waiting"
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._kept[name] = "cancelled"
            raise

    async def _flood(self, asked: dict[str, Any], context: Any) -> None:
        name, padding = asked["name"], "x" * int(asked["size"])
        self._kept[name] = 0
        try:
            for number in range(int(asked["count"])):
                await context.write(struct(padding=padding))
                self._kept[name] = number + 1
        except BaseException as error:
            self._kept[name] = type(error).__name__
            raise

    def _describe(self, context: Any) -> Struct:
        metadata = [
            [name, value if isinstance(value, str) else value.hex()] for name, value in context.invocation_metadata()
        ]
        return struct(
            metadata=metadata,
            peer=context.peer(),
            remaining_s=context.time_remaining(),
            num_tasks=len(asyncio.all_tasks()),
        )

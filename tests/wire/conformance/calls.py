"""Calls the service of `servicer.py` with grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from examples.local_service import LocalService
from tests.wire.conformance.http2 import Connection, call_headers, message_frame
from tests.wire.conformance.servicer import SERVICE, struct


def path(method: str) -> str:
    """Returns the path of a method."""
    return f"/{SERVICE}/{method}"


def framed(**fields: Any) -> bytes:
    """Returns a framed request."""
    return message_frame(struct(**fields).SerializeToString())


def read(message: bytes | Struct) -> dict[str, Any]:
    """Returns the fields of a message."""
    return MessageToDict(Struct.FromString(message) if isinstance(message, bytes) else message)


def recorded(service: LocalService, name: str) -> Any:
    """Returns what the service keeps under a name; None if nothing."""
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary")), framed(do="tell", name=name))
    assert answer.status == 0, answer
    return read(answer.messages[0])["kept"]


class Client:
    """Calls the methods on one channel. Event loop only."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        codec = (Struct.SerializeToString, Struct.FromString)
        self.unary: Any = channel.unary_unary(path("Unary"), *codec)
        self.server_stream: Any = channel.unary_stream(path("ServerStream"), *codec)
        self.client_stream: Any = channel.stream_unary(path("ClientStream"), *codec)
        self.stream: Any = channel.stream_stream(path("Stream"), *codec)

    async def ask(self, **fields: Any) -> dict[str, Any]:
        """Returns the response to a unary call."""
        return read(await self.unary(struct(**fields), timeout=20))

    async def ended(
        self, method: str, *, timeout_s: float = 20.0, **fields: Any
    ) -> tuple[list[dict[str, Any]], grpc.aio.AioRpcError | None]:
        """Calls a method with one request. Returns its responses, and its error or None."""
        request, found = struct(**fields), []
        try:
            if method == "Unary":
                found.append(read(await self.unary(request, timeout=timeout_s)))
            elif method == "ClientStream":
                found.append(read(await self.client_stream(iter([request]), timeout=timeout_s)))
            else:
                asked = request if method == "ServerStream" else iter([request])
                call = self.server_stream if method == "ServerStream" else self.stream
                async for response in call(asked, timeout=timeout_s):
                    found.append(read(response))
        except grpc.aio.AioRpcError as error:
            return found, error
        return found, None


@asynccontextmanager
async def client(target: str) -> AsyncIterator[Client]:
    """A client with its own connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Client(channel)

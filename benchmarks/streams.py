"""Streams that the Python load generator keeps busy.

They write prepared bytes and do not parse responses, so that the measurement covers the server and not the generator.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from benchmarks.traffic import METHOD, NUM_CHANNELS, opening
from carousel.v1 import inference_pb2 as pb


class Streams:
    """Streams over a few connections, each with one open session."""

    def __init__(self, target: str, model: str, name: str = "load", *, durability: str = "none") -> None:
        """durability: see `Open`; stored sessions are also held after their stream."""
        self._opening = opening(model, durability)
        # channels with equal options would share one connection
        self._channels = [
            grpc.aio.insecure_channel(target, [("carousel.connection", f"{name}-{number}")])
            for number in range(NUM_CHANNELS)
        ]

    async def open(self, index: int) -> Any:
        """Returns a stream with an open session. Raises RuntimeError when the server refuses it."""
        call: Any = self._channels[index % NUM_CHANNELS].stream_stream(METHOD)()
        await call.write(self._opening)
        answer = pb.StreamResponse.FromString(await call.read())
        if not answer.HasField("opened"):
            raise RuntimeError(f"the server did not open a session: {answer}")
        return call

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

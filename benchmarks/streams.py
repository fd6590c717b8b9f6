"""Streams that the Python load generator keeps busy.

They write ready-made bytes and do not parse answers, so that the server is measured and not the generator.
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
        """durability: see `Open`; sessions that are stored are held too."""
        self._opening = opening(model, durability)
        # options that differ keep gRPC from sharing one connection among the channels
        self._channels = [
            grpc.aio.insecure_channel(target, [("carousel.connection", f"{name}-{number}")])
            for number in range(NUM_CHANNELS)
        ]

    async def open(self, index: int) -> Any:
        """A stream whose session is open."""
        call: Any = self._channels[index % NUM_CHANNELS].stream_stream(METHOD)()
        await call.write(self._opening)
        answer = pb.StreamResponse.FromString(await call.read())
        if not answer.HasField("opened"):
            raise RuntimeError(f"the server did not open a session: {answer}")
        return call

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

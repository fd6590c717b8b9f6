"""Streams that a load generator keeps busy: they write ready-made bytes and do not parse what they read, so that the
server is what is measured."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from carousel.v1 import inference_pb2 as pb

METHOD = "/carousel.v1.Inference/Stream"
NUM_CHANNELS = 4
NOTHING = pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)


class Streams:
    """Streams over a few connections, each with one open session."""

    def __init__(self, target: str, model: str, name: str = "load", *, durability: str = "none") -> None:
        """durability: see `Open`; sessions that are stored are held too."""
        self._opening = pb.Open(model=model, durability=pb.Durability.Value(f"DURABILITY_{durability.upper()}"))
        if durability != "none":
            self._opening.on_disconnect.action = pb.DISCONNECT_ACTION_HOLD
        # options that differ keep gRPC from sharing one connection among the channels
        self._channels = [
            grpc.aio.insecure_channel(target, [("carousel.connection", f"{name}-{number}")])
            for number in range(NUM_CHANNELS)
        ]

    async def open(self, index: int) -> Any:
        """A stream whose session is open."""
        call: Any = self._channels[index % NUM_CHANNELS].stream_stream(METHOD)()
        await call.write(pb.StreamRequest(open=self._opening).SerializeToString())
        answer = pb.StreamResponse.FromString(await call.read())
        if not answer.HasField("opened"):
            raise RuntimeError(f"the server did not open a session: {answer}")
        return call

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


def feed(tokens: list[int], outputs: pb.OutputSpec | None = None) -> bytes:
    """A feed, ready to be written."""
    return pb.StreamRequest(request_id=7, feed=pb.Feed(token_ids=tokens, outputs=outputs)).SerializeToString()

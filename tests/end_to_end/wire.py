"""A stream of raw messages, for tests that cannot use the client package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc


class Wire:
    """One `Inference.Stream` call."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._last_id = 0

    async def send(self, session_id: str = "", **request: Any) -> int:
        """Writes one request and returns its id."""
        self._last_id += 1
        await self.call.write(pb.StreamRequest(request_id=self._last_id, session_id=session_id, **request))
        return self._last_id

    async def read(self) -> pb.StreamResponse:
        """Returns the next response. Fails if the call has ended."""
        response = await self.call.read()
        assert response is not grpc.aio.EOF, f"the call ended: {await self.call.code()}, {await self.call.details()}"
        assert isinstance(response, pb.StreamResponse)
        return response

    async def ask(self, session_id: str = "", **request: Any) -> pb.StreamResponse:
        """Writes one request and returns the response to it, which must be the next one."""
        request_id = await self.send(session_id, **request)
        response = await self.read()
        assert response.request_id == request_id
        return response

    async def generated(self) -> tuple[list[str], pb.StreamResponse]:
        """Reads one generation to its end. Returns the texts of its tokens, and its last response."""
        tokens = []
        while True:
            response = await self.read()
            assert response.HasField("generated"), response
            tokens += [token.text for token in response.generated.tokens]
            if response.generated.finish_reason:
                return tokens, response


@asynccontextmanager
async def wire(target: str, options: Sequence[tuple[str, int]] = ()) -> AsyncIterator[Wire]:
    """Yields a stream on its own channel, and cancels it at the end."""
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Stream()
        try:
            yield Wire(call)
        finally:
            call.cancel()


def g2p(source: str = "carousel", **fields: Any) -> pb.Open:
    """Returns an opening of a session of the shipped model `g2p-en`."""
    return pb.Open(model="g2p-en", source=pb.Sequence(text=source), **fields)


def lm(model: str = "tiny-lm", **fields: Any) -> pb.Open:
    """Returns an opening of a session of a tiny language model."""
    return pb.Open(model=model, **fields)

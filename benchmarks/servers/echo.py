"""A bare grpc.aio server: answers each message at once with one of the same kind and size as the service's own."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.servers.host import Context, serve
from carousel.v1 import inference_pb2 as pb


async def stream(request_iterator: Any, context: Context) -> None:
    """Answers an open as opened and a feed with a next token."""
    async for request in request_iterator:
        if request.WhichOneof("request") == "open":
            await context.write(pb.StreamResponse(request_id=request.request_id, opened=pb.Opened(model="echo")))
            continue
        position = request.feed.position + len(request.feed.token_ids)
        output = pb.StepOutput(position=position, tokens=[pb.Token(id=request.feed.token_ids[0], text="t1")])
        await context.write(
            pb.StreamResponse(
                request_id=request.request_id,
                session_id=request.session_id,
                position=position,
                fed=pb.Fed(outputs=[output]),
            )
        )


if __name__ == "__main__":
    asyncio.run(serve(stream))

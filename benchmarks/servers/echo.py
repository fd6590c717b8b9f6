"""A bare grpc.aio server: answers each message at once with one of the same kind and size as the service's own."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.servers.host import Context, fed, opened, serve


async def stream(request_iterator: Any, context: Context) -> None:
    """Answers an open as opened and a feed with a next token."""
    async for request in request_iterator:
        if request.WhichOneof("request") == "open":
            await context.write(opened(request, "echo"))
        else:
            await context.write(fed(request, request.feed.token_ids[0], "t1"))


if __name__ == "__main__":
    asyncio.run(serve(stream))

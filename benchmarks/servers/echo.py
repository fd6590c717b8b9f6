"""A bare server: answers each message at once with a response of the same kind and size as the service's own."""

from __future__ import annotations

from typing import Any

import grpc

from benchmarks.servers.host import Context, Handler, fed, opened, run


def make(arguments: list[str]) -> Handler:
    """Returns the handler. Takes no arguments."""
    return _stream


async def _stream(_: Any, context: Context) -> None:
    """Answers an open as opened, and a feed with a next token."""
    while (request := await context.read()) is not grpc.aio.EOF:
        if request.WhichOneof("request") == "open":
            await context.write(opened(request, "echo"))
        else:
            await context.write(fed(request, request.feed.token_ids[0], "t1"))


if __name__ == "__main__":
    run(make)

"""Starts the servers that are measured, and makes their responses.

    python -m benchmarks.servers.NAME ARGUMENTS

runs one on grpc.aio; `on_envoy` runs the same one inside Envoy.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[None]]
"""Serves one stream."""


def run(make: Callable[[list[str]], Handler]) -> None:
    """Serves the `Inference` service on a free port until SIGTERM. Prints the port.

    make: makes the handler from the command's arguments.
    """
    asyncio.run(_serve(make(sys.argv[1:])))


async def _serve(stream: Handler) -> None:
    class Servicer(inference_pb2_grpc.InferenceServicer):
        """Calls the handler for `Stream`; has no other method."""

        Stream = staticmethod(stream)  # type: ignore[assignment]
        Generate = None  # type: ignore[assignment]  # never called
        Score = None  # type: ignore[assignment]  # likewise
        Step = None  # type: ignore[assignment]  # likewise
        Watch = None  # type: ignore[assignment]  # likewise

    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    await leave.wait()
    await server.stop(0)


def opened(request: pb.StreamRequest, model: str) -> pb.StreamResponse:
    """Returns the response to an open."""
    return pb.StreamResponse(request_id=request.request_id, opened=pb.Opened(model=model))


def fed(request: pb.StreamRequest, token: int, text: str) -> pb.StreamResponse:
    """Returns the response to a feed, of the same kind and size as the service's own: the next token."""
    position = request.feed.position + len(request.feed.token_ids)
    output = pb.StepOutput(position=position, tokens=[pb.Token(id=token, text=text)])
    return pb.StreamResponse(
        request_id=request.request_id, session_id=request.session_id, position=position, fed=pb.Fed(outputs=[output])
    )

"""Runs a stream handler as the `Inference` service on a free port, and prints the port."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from carousel.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


async def serve(stream: Callable[[Any, Context], Awaitable[None]]) -> None:
    """Serves until SIGTERM."""

    class Servicer(inference_pb2_grpc.InferenceServicer):
        """The handler, in the place of the real one."""

        Stream = staticmethod(stream)  # type: ignore[assignment]
        Generate = None  # type: ignore[assignment]  # nobody asks
        Score = None  # type: ignore[assignment]  # likewise

    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    await leave.wait()
    await server.stop(0)

"""A simple hand-written server: one client per stream, its state in local variables, one `session.run` per message."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.bare import load_step
from benchmarks.servers.host import Context, Handler, fed, opened, run
from service.repository.runtime import RuntimeOptions

DEFAULTS = RuntimeOptions(num_threads=os.cpu_count() or 1, allow_spinning=True)
"""ONNX Runtime's own defaults: one thread per core, and waiting threads keep their cores busy."""


def make(arguments: list[str]) -> Handler:
    """Returns the handler. arguments: the bundle; then `one` for one thread per operator, or `defaults`."""
    folder, threads = arguments
    bundle = load_step(Path(folder), runtime=DEFAULTS if threads == "defaults" else None)

    async def stream(_: Any, context: Context) -> None:
        """Serves one session: the first message opens it, the others step it."""
        state = bundle.zeros(1)
        lengths = np.ones(1, np.int64)
        while (request := await context.read()) is not grpc.aio.EOF:
            if request.WhichOneof("request") == "open":
                await context.write(opened(request, "naive"))
                continue
            tokens = np.array([request.feed.token_ids], np.int64)
            logits, state = bundle.step(tokens, lengths, state)
            best = int(logits[0, -1].argmax())
            await context.write(fed(request, best, bundle.names[best]))

    return stream


if __name__ == "__main__":
    run(make)

"""What one writes by hand: a stream a client, its state in local variables, one `session.run` a message."""

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
"""What ONNX Runtime does by itself: a thread a core, and threads that wait keep their cores busy."""


def make(arguments: list[str]) -> Handler:
    """arguments: the bundle; `one` for one thread an operator, or `defaults`."""
    folder, threads = arguments
    bundle = load_step(Path(folder), runtime=DEFAULTS if threads == "defaults" else None)

    async def stream(_: Any, context: Context) -> None:
        """One session: opened by the first message, stepped by the others."""
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

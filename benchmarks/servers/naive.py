"""What one writes by hand: a grpc.aio stream a client, its state in local variables, one `session.run` a message."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare import load_step
from benchmarks.servers.host import Context, fed, opened, serve
from service.repository.runtime import RuntimeOptions

# what ONNX Runtime does by itself: a thread a core, and threads that wait keep their cores busy
DEFAULTS = RuntimeOptions(num_threads=os.cpu_count() or 1, allow_spinning=True)
bundle = load_step(Path(sys.argv[1]), runtime=DEFAULTS if sys.argv[2] == "defaults" else None)


async def stream(request_iterator: Any, context: Context) -> None:
    """One session: opened by the first message, stepped by the others."""
    state = bundle.zeros(1)
    lengths = np.ones(1, np.int64)
    async for request in request_iterator:
        if request.WhichOneof("request") == "open":
            await context.write(opened(request, "naive"))
            continue
        tokens = np.array([request.feed.token_ids], np.int64)
        logits, state = bundle.step(tokens, lengths, state)
        best = int(logits[0, -1].argmax())
        await context.write(fed(request, best, bundle.names[best]))


if __name__ == "__main__":
    asyncio.run(serve(stream))

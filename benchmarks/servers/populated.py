"""The service with many open sessions: `python -m benchmarks.servers.populated REPOSITORY MODEL SESSIONS`.

Prints one line of JSON: the port, and the resident memory in bytes before and after the sessions were opened and their
state was written. With `--feed`, it feeds each session a token, as a client would; otherwise it writes to the arrays.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import structlog

from examples.processes import resident_bytes
from service import process
from service.engine.jobs import OutputKind, OutputSpec
from service.repository.manifest import BASE_VARIANT
from service.server import Server
from service.sessions.request import Request
from service.sessions.session import Session
from service.settings import Settings
from service.wire.grpcio import GrpcioWire


def ignore(*_: Any) -> None:
    """Ignores a response or event."""


async def serve(repository: Path, model: str, num_sessions: int, *, feed: bool) -> None:
    """Opens the sessions inside the server, then serves until SIGTERM."""
    settings = Settings(
        models=repository,
        port=0,
        metrics_port=0,
        store="memory",
        max_sessions=num_sessions + 100,
        idle_timeout_s=1e6,
        max_waiting=10**7,
    )
    server = Server(settings, GrpcioWire(settings))
    addresses = await server.start()
    sessions, served = server._sessions, server._hosting.find(model, 1, BASE_VARIANT)
    assert sessions is not None  # noqa: S101  # exists since the server started
    engine = served.engine
    gc.collect()
    before = resident_bytes(os.getpid())
    for begin in range(0, num_sessions, 10_000):
        opened: list[Session] = []
        for _ in range(begin, min(begin + 10_000, num_sessions)):
            request = Request(None, 0, ignore, 0.0)
            new = sessions.opening.prepare(served, "", None, None, request=request, on_ended=ignore)
            sessions.opening.begin(new)
            opened.append(new.session)
        if feed:
            for session in opened:
                nothing = OutputSpec(OutputKind.NONE)
                sessions.requests.feed(Request(session, 0, ignore, 0.0), 0, [1], nothing)
            while engine.statistics.num_unanswered:  # noqa: ASYNC110  # polling is acceptable in a benchmark
                await asyncio.sleep(0)
    if not feed:
        for state in engine._core.arena._states:
            state.values[state.at(slice(1, num_sessions + 1))] = 1
    gc.collect()
    print(json.dumps({"port": addresses.port, "before": before, "after": resident_bytes(os.getpid())}), flush=True)
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    await leave.wait()


def main() -> None:
    """Runs the command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("sessions", type=int)
    parser.add_argument("--feed", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    process.run(serve(arguments.repository, arguments.model, arguments.sessions, feed=arguments.feed))


if __name__ == "__main__":
    main()

"""`python -m benchmarks path`: how much of the server's code an event executes, in calls, functions and files.

The real server and a real client share this process. Counting starts before the event's request is written. It ends
when its response was read and the server is idle again. Each figure is the median of many events in a warm session.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import grpc
import structlog

import service
from benchmarks.calls import Crossed, Recorder
from benchmarks.subjects import SMALL, make
from benchmarks.traffic import METHOD
from carousel.v1 import inference_pb2 as pb
from service.server import Server
from service.settings import Settings
from service.wire.grpcio import GrpcioWire

WARM_FEEDS = 50
LONG_FEED = 4096
"""Tokens of a feed that is long enough to run on the engine's thread."""
GENERATED = 32
QUIET_S = 0.002
"""How long to wait after a response, so that the server completes the work of the event."""
TIMEOUT_S = 20.0
INLINE_S = 1.0
"""Far above what a small batch takes, so that it runs on the event loop also on a machine that is busy with others."""
MAX_CALLS, MAX_FILES = 60, 18
"""Limits for one fed token."""


@dataclass(slots=True)
class Stream:
    """One stream of the client, with at most one request in flight."""

    call: Any
    """A `grpc.aio.StreamStreamCall`."""

    async def ask(self, **request: Any) -> pb.StreamResponse:
        """Writes a request and reads its last response. Raises RuntimeError when the server refuses it or ends the
        stream."""
        await self.call.write(pb.StreamRequest(**request))
        while True:
            answer = await asyncio.wait_for(self.call.read(), TIMEOUT_S)
            if answer is grpc.aio.EOF:
                raise RuntimeError("the server ended the stream")
            if answer.HasField("error"):
                raise RuntimeError(f"the server refused a request: {answer.error}")
            if not answer.HasField("generated") or answer.generated.finish_reason:
                response: pb.StreamResponse = answer
                return response

    async def end(self) -> None:
        """Ends the client's side of the stream, and waits until the server has ended its side."""
        await self.call.done_writing()
        while await asyncio.wait_for(self.call.read(), TIMEOUT_S) is not grpc.aio.EOF:
            pass


class Events:
    """Measures one kind of event after another."""

    def __init__(self, channel: grpc.aio.Channel, model: str, recorder: Recorder, repeats: int) -> None:
        self._channel = channel
        self._model = model
        self._recorder = recorder
        self._repeats = repeats

    async def measure(self) -> dict[str, Crossed]:
        """Measures all events except `resumed`. Returns them by name."""
        strict = {"durability": pb.DURABILITY_STRICT}
        return {
            "one fed token": await self._fed({}),
            "open plain": await self._opened({}),
            "open strict": await self._opened(strict),
            f"generate {GENERATED} tokens": await self._generated(),
            "strict feed with its checkpoint": await self._fed(strict),
        }

    def _stream(self) -> Stream:
        call: Any = self._channel.stream_stream(
            METHOD,
            request_serializer=pb.StreamRequest.SerializeToString,
            response_deserializer=pb.StreamResponse.FromString,
        )()
        return Stream(call)

    async def _warm(self, terms: dict[str, Any]) -> Stream:
        """Returns a stream whose session has run on the event loop and on the engine's thread."""
        stream = self._stream()
        await stream.ask(open=pb.Open(model=self._model, **terms))
        await stream.ask(feed=pb.Feed(token_ids=[1] * LONG_FEED))
        for _ in range(WARM_FEEDS):
            await stream.ask(feed=pb.Feed(token_ids=[1]))
        return stream

    async def _count(self, event: Callable[[], Awaitable[object]]) -> Crossed:
        await asyncio.sleep(QUIET_S)
        self._recorder.take()
        self._recorder.is_on = True
        await event()
        await asyncio.sleep(QUIET_S)
        return self._recorder.take()

    async def _fed(self, terms: dict[str, Any]) -> Crossed:
        stream = await self._warm(terms)
        request = pb.Feed(token_ids=[1])
        counted = [await self._count(lambda: stream.ask(feed=request)) for _ in range(self._repeats)]
        await stream.end()
        return _median(counted)

    async def _opened(self, terms: dict[str, Any]) -> Crossed:
        stream = await self._warm(terms)
        counted = []
        for number in range(self._repeats):
            name = f"open-{'-'.join(terms) or 'plain'}-{number}"
            request = pb.Open(model=self._model, **terms)
            counted.append(await self._count(lambda: stream.ask(session_id=name, open=request)))  # noqa: B023  # awaited
            await stream.ask(session_id=name, close=pb.Close())
        await stream.end()
        return _median(counted)

    async def _generated(self) -> Crossed:
        stream = await self._warm({})
        request = pb.Generate(decoding=pb.Decoding(max_tokens=GENERATED))
        await stream.ask(generate=request)
        counted = [await self._count(lambda: stream.ask(generate=request)) for _ in range(self._repeats)]
        await stream.end()
        return _median(counted)

    async def leave(self) -> None:
        """Opens the sessions that `resumed` will resume, and ends their stream."""
        stream = self._stream()
        keep = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP)
        for number in range(self._repeats):
            name = f"kept-{number}"
            await stream.ask(session_id=name, open=pb.Open(model=self._model, on_disconnect=keep))
            await stream.ask(session_id=name, feed=pb.Feed(token_ids=[1]))
        await stream.end()

    async def resumed(self) -> Crossed:
        """Resumes the sessions of `leave` from the store. Call it on a server that started after `leave`.

        Raises RuntimeError when a session does not come from the store.
        """
        stream = await self._warm({})
        request, counted = pb.Open(resume=pb.Resume()), []
        for number in range(self._repeats):
            name, answers = f"kept-{number}", []

            async def resume() -> None:
                answers.append(await stream.ask(session_id=name, open=request))  # noqa: B023  # awaited in its round

            counted.append(await self._count(resume))
            if answers[0].opened.restored_from != pb.RESTORED_FROM_STORE:
                raise RuntimeError(f"session {name} was not resumed from the store")
            await stream.ask(session_id=name, close=pb.Close())
        await stream.end()
        return _median(counted)


async def measure(models: Path, model: str, repeats: int) -> dict[str, Crossed]:
    """Measures every event `repeats` times, on servers in this process that run one after another on the same store."""
    recorder = Recorder(Path(service.__file__).parent)
    with tempfile.TemporaryDirectory() as folder, recorder.installed():
        settings = Settings(
            models=models,
            port=0,
            metrics_port=0,
            store="lmdb",
            data_folder=Path(folder),
            inline_s=INLINE_S,
        )
        async with _served(settings) as channel:
            events = Events(channel, model, recorder, repeats)
            measured = await events.measure()
            await events.leave()
        async with _served(settings) as channel:
            resumed = await Events(channel, model, recorder, repeats).resumed()
        return {**measured, "resume from the store": resumed}


@asynccontextmanager
async def _served(settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """Starts a server on a free port. Yields a channel to it."""
    server = Server(settings, GrpcioWire(settings))
    port = (await server.start()).port
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop()


def _median(counted: list[Crossed]) -> Crossed:
    names = [field.name for field in fields(Crossed)]
    return Crossed(**{name: round(statistics.median(getattr(one, name) for one in counted)) for name in names})


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks path", description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="how often each event is counted (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 1:
        parser.error("--repeats must be 1 or more")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    events = asyncio.run(measure(make((SMALL,)), SMALL.name, parsed.repeats))
    print(f"\npath: code under service/ that an event executes, median of {parsed.repeats}")
    print(f"  {'event':<32} {'calls':>6} {'functions':>10} {'files':>6} {'moves':>6}")
    for name, crossed in events.items():
        print(f"  {name:<32} {crossed.calls:>6} {crossed.functions:>10} {crossed.files:>6} {crossed.moves:>6}")
    fed = events["one fed token"]
    verdict = "met" if fed.calls <= MAX_CALLS and fed.files <= MAX_FILES else "NOT MET"
    print(f"  one fed token: at most {MAX_CALLS} calls in {MAX_FILES} files: {verdict}")
    if parsed.json is not None:
        document = {"name": "path", "events": {name: asdict(crossed) for name, crossed in events.items()}}
        parsed.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0

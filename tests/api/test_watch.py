"""`Watch`: the call releases what it holds however it ends, and each message fits the limit."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from carousel.v1 import inference_pb2 as pb
from service.api import watch as watch_module
from service.api.inference import Inference
from service.api.watch import Watch
from service.engine.jobs import OutputKind, OutputSpec
from service.errors import SessionNotFoundError, ShuttingDownError, WatcherDroppedError
from service.sessions.limits import PolicyLimits
from service.sessions.session import CloseReason
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns

EVERY = OutputSpec(OutputKind.LOGITS, every_position=True)


class Context:
    """The part of a call's context that `Watch` uses.

    has_left: whether the client has left. reads: an event that is set while the client reads. was_reset: whether the
    server has ended the call without a status.
    """

    def __init__(self) -> None:
        self.written: list[pb.WatchResponse] = []
        self.has_left = self.was_reset = False
        self.reads = asyncio.Event()
        self.reads.set()

    async def write(self, response: pb.WatchResponse) -> None:
        if self.has_left:
            raise grpc.aio.InternalError("the client has left")
        self.written.append(response)
        await self.reads.wait()
        await turns()

    def reset(self) -> None:
        self.was_reset = True


def served(it: Sessions) -> Inference:
    repository = SimpleNamespace(has=lambda model: True)
    hosting = SimpleNamespace(find=lambda *names, **more: it.served, repository=repository)
    domain = SimpleNamespace(hosting=hosting, sessions=it.service, policy_limits=PolicyLimits())
    return Inference(cast(Any, domain), cast(Any, it.events), lambda context: cast(Any, context).reset())


def watching(inference: Inference, context: Context) -> asyncio.Task[None]:
    return asyncio.create_task(inference.Watch(pb.WatchRequest(session_id="s"), cast(Any, context)))


async def test_a_call_leaves_nothing_behind_however_it_ends(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session, inference = await it.open("s"), served(it)
        watches = it.service.watches
        cancelled, left, ended = Context(), Context(), Context()
        calls = [watching(inference, context) for context in (cancelled, left, ended)]
        await turns(10)
        assert len(watches.of_session[session]) == 3
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        left.has_left = True
        await it.feed(session, 0, [5])
        await calls[1]
        assert len(watches.of_session[session]) == 1
        inference.end_streams()
        with pytest.raises(ShuttingDownError, match="the server is shutting down: watch again"):
            await calls[2]
        assert (watches.of_session, watches.num_bytes, session.is_over) == ({}, 0, False)
        assert [one.WhichOneof("event") for one in ended.written] == ["watching", "fed"]
        with pytest.raises(SessionNotFoundError, match="'t' is unknown"):
            await inference.Watch(pb.WatchRequest(session_id="t"), cast(Any, Context()))
        last = Context()
        call = watching(inference, last)
        await turns(10)
        it.registry.close(session, CloseReason.CLIENT, notify=False)
        await call
        assert [one.WhichOneof("event") for one in last.written] == ["watching", "closed"]
        assert watches.of_session == {}


async def test_no_message_is_larger_than_an_answer_may_be(tiny_repository: Path) -> None:
    limit = 72_000  # the outputs alone fit into this
    async with opened(tiny_repository) as it:
        session, context = await it.open("s"), Context()
        watch = Watch(it.service.watches.watch(session), "s", limit)
        await it.feed(session, 0, [5] * 900, EVERY)
        it.registry.close(session, CloseReason.CLIENT, notify=False)
        await watch.send(context.write)
        kinds = [one.WhichOneof("event") for one in context.written]
        assert kinds == ["watching", "fed", "fed", "closed"]
        tokens, outputs = context.written[1:3]
        assert (tokens.position, len(tokens.fed.tokens), tokens.fed.HasField("fed")) == (900, 900, False)
        assert (outputs.position, len(outputs.fed.tokens)) == (900, 0)
        assert len(outputs.fed.fed.outputs) == 900
        assert all(one.ByteSize() <= limit for one in context.written)


@pytest.mark.parametrize("reads_at_last", [False, True])
async def test_a_dropped_watch_ends_also_if_its_reader_stalls(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, *, reads_at_last: bool
) -> None:
    monkeypatch.setattr(watch_module, "_LAST_WRITE_S", 20.0 if reads_at_last else 0.0)
    async with opened(tiny_repository) as it:
        session, inference, context = await it.open("s"), served(it), Context()
        watches = it.service.watches
        call = watching(inference, context)
        await turns(10)
        context.reads.clear()
        await it.feed(session, 0, [5] * 2000, EVERY)
        await turns(10)
        for position in range(2000, 2257):
            assert not call.done()
            await it.feed(session, position, [5])
        assert watches.num_bytes == 0, "what waited is released at once"
        if reads_at_last:
            await turns(10)
            assert not call.done()
            context.reads.set()
        with pytest.raises(WatcherDroppedError, match="256 events of session 's' wait to be read"):
            await call
        assert (watches.of_session, context.was_reset) == ({}, not reads_at_last)
        assert [one.WhichOneof("event") for one in context.written] == ["watching", "fed", "fed"][
            : len(context.written)
        ]
        message = context.written.pop()
        assert message.WhichOneof("event") == "fed"
        assert sys.getrefcount(message) == 2, "nothing keeps the message, not even the error"


async def test_a_stalled_watch_does_not_delay_a_drain(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_LAST_WRITE_S", 0.0)
    async with opened(tiny_repository) as it:
        await it.open("s")
        inference, context = served(it), Context()
        context.reads.clear()
        call = watching(inference, context)
        await turns(10)
        inference.end_streams()
        with pytest.raises(ShuttingDownError):
            await call
        assert (context.was_reset, it.service.watches.of_session) == (True, {})


async def test_a_watch_of_a_session_that_has_ended_waits_for_its_reader_no_longer_than_a_minute(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_LAST_EVENTS_S", 0.0)
    async with opened(tiny_repository) as it:
        session, inference, context = await it.open("s"), served(it), Context()
        context.reads.clear()
        call = watching(inference, context)
        await turns(10)
        await it.feed(session, 0, [5])
        assert not call.done()
        it.registry.close(session, CloseReason.CLIENT, notify=False)
        with pytest.raises(WatcherDroppedError, match="2 events of session 's' wait to be read"):
            await call
        assert (context.was_reset, it.service.watches.num_bytes, it.service.watches.of_session) == (True, 0, {})

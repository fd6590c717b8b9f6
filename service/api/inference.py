"""The `Inference` service: reads, hands over, writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from types import CoroutineType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from service.api import answers, consumed, convert
from service.api.caller import CALLER, Domain
from service.api.constants import session_constants
from service.api.one_shot import OneShot
from service.api.outbox import Outbox, OutboxEntry
from service.api.step import Step
from service.api.stream import Stream
from service.api.watch import Watch
from service.errors import InvalidFieldError, ShuttingDownError
from service.observer import ApiObserver, current_call
from service.sessions.persistence import SessionLimits
from service.sessions.registry import Registry
from service.sessions.served import Served
from service.sessions.session import Session

Context = grpc.aio.ServicerContext[Any, Any]
_OUTBOX_LIMIT = 256


class Inference(inference_pb2_grpc.InferenceServicer):
    """Runs models over sessions. reset: see `Wire.reset`."""

    def __init__(self, domain: Domain, observer: ApiObserver, reset: Callable[[Context], None]) -> None:
        self._domain = domain
        self._observer = observer
        self._reset = reset
        self._streams: set[Stream] = set()
        self._watches: set[Watch] = set()

    def end_streams(self) -> None:
        """Lets every stream end as soon as the requests that it has read are answered, and every watch at once."""
        for stream in list(self._streams):
            stream.end()
        for watch in list(self._watches):
            watch.end()

    def go_away(self, grace_s: float) -> None:
        """Tells every stream that the server is leaving."""
        for stream in list(self._streams):
            stream.replies.notify(answers.go_away(grace_s))

    @property
    def num_streams(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    # The generated base class promises iterators; grpc.aio serves a coroutine that calls `context.write` as well.

    async def Stream(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Many requests of many sessions, for as long as the client stays."""
        outbox: Outbox[pb.StreamResponse] = Outbox(_OUTBOX_LIMIT, _at_once(context, self._observer))
        stream = Stream(self._domain, CALLER.get(), self._observer, outbox)
        report = current_call()
        self._streams.add(stream)
        try:
            async with asyncio.TaskGroup() as group:
                # each a task of its own: a task that wakes up resumes each coroutine between it and what it awaited
                reader = group.create_task(
                    _read(stream, outbox, context, self._observer, self._domain.sessions.registry)
                )
                await group.create_task(_write(outbox, context, self._observer))
                malformed = reader.done() and reader.result()
                reader.cancel()
        finally:
            self._streams.discard(stream)
            stream.disconnect()
            report.models |= stream.models
            stream.replies.report(report)
        if malformed:
            raise InvalidFieldError("a message is not a StreamRequest: the stream cannot go on after it")
        if stream.is_ended_by_server:
            raise ShuttingDownError("the server is shutting down: open a new stream", retry_delay_s=1.0)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """One generation in a session of its own."""
        served = self._find(request)
        decoding = convert.decoding(
            request.decoding, served.bundle.target_vocabulary, served.bundle.manifest.max_tokens, field="decoding"
        )
        outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse] = Outbox(_OUTBOX_LIMIT)
        call = OneShot(self._domain, CALLER.get(), outbox)
        try:
            call.generate(_open(call, served, request, self._domain.sessions.limits), decoding)
            await _write(outbox, context, self._observer)
            call.raise_failure()
        finally:
            call.end()

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """How likely targets are, in a session of its own."""
        served = self._find(request)
        limits = self._domain.sessions.limits
        targets = convert.targets(
            request.targets,
            served.bundle.target_vocabulary,
            field="targets",
            max_targets=limits.max_forks,
            limit=limits.max_feed_tokens,
        )
        outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse] = Outbox(_OUTBOX_LIMIT)
        call = OneShot(self._domain, CALLER.get(), outbox)
        try:
            call.score(_open(call, served, request, limits), targets, with_end=request.with_end)
            taken = await outbox.next()
            call.raise_failure()
            assert taken is not None  # noqa: S101  # closed without a response by a failure alone
            response = taken[0]
            assert isinstance(response, pb.ScoreResponse)  # noqa: S101  # a score was asked for
            return response
        finally:
            call.end()

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """A visit of one session."""
        return await Step(self._domain, CALLER.get()).answer(request)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        """What happens to one session."""
        watch = await Watch.begin(self._domain.sessions, CALLER.get(), request.session_id)
        report = current_call()
        self._watches.add(watch)
        try:
            await watch.tell(context.write)
        except grpc.aio.InternalError:  # see `_write`
            return
        finally:
            self._watches.discard(watch)
            watch.close()
            if watch.is_given_up:
                self._reset(context)
            report.used(watch.model)
            report.num_messages_out = watch.num_written

    def _find(self, request: pb.GenerateRequest | pb.ScoreRequest) -> Served:
        """The model of a call. Raises what `Hosting.find` raises."""
        current_call().used(self._domain.hosting.known(request.model))
        return self._domain.hosting.find(request.model, request.version, request.variant)


def _open(
    call: OneShot, served: Served, request: pb.GenerateRequest | pb.ScoreRequest, limits: SessionLimits
) -> Session:
    """Opens the session of a call, with the source and the prompt that its request has."""
    bundle = served.bundle
    source = consumed.source_items(request.source, bundle) if request.HasField("source") else None
    prompt = None
    if request.HasField("prompt"):
        prompt = consumed.prompt_items(request.prompt, bundle, limits.max_feed_tokens)
    given = session_constants(request.constants, bundle.manifest, field="constants")
    return call.open(served, source, prompt, request.ByteSize(), given)


async def _read(
    stream: Stream,
    outbox: Outbox[pb.StreamResponse],
    context: Context,
    observer: ApiObserver,
    registry: Registry,
) -> bool:
    """Takes requests in, up to the last. Returns whether a message was none, which ends the stream."""
    clock, leases = registry.clock, registry.leases
    while True:
        try:
            request = await context.read()
        except DecodeError:
            outbox.close()
            return True
        if request is grpc.aio.EOF:
            break
        if clock() > leases.until_s:
            leases.look()
        if outbox.hold():
            # a lone session is answered before `handle` returns: its answer is written from here, sparing a task switch
            stream.handle(request)
            is_there = not outbox.waiting or await _write_one(outbox.take(), context, observer)
            outbox.let_go()
            if not is_there:
                outbox.close()
                return False
        else:
            stream.handle(request)
        if stream.is_full:
            await stream.room()
    stream.last_read()
    return False


async def _write(outbox: Outbox[Any], context: Context, observer: ApiObserver) -> None:
    """Writes responses until the outbox is closed and empty, or the client is gone."""
    while True:
        if outbox.waiting:
            response, on_written = outbox.take()
            if on_written is not None and isinstance(response, CoroutineType):
                response = await response
            began_s = perf_counter()
            try:
                await context.write(response)
            except grpc.aio.InternalError:  # what grpc says of a client that has left meanwhile
                return
            observer.response_written(perf_counter() - began_s)
            if on_written is not None:
                on_written()
        elif outbox.is_closed:
            return
        else:
            await outbox.arrival()


def _at_once(context: Any, observer: ApiObserver) -> Callable[[pb.StreamResponse], bool] | None:
    """What writes a response without waiting, on a wire that can: see `Wire.open`."""
    write_at_once = getattr(context, "write_at_once", None)
    if write_at_once is None:
        return None

    def write(response: pb.StreamResponse) -> bool:
        began_s = perf_counter()
        is_written: bool = write_at_once(response)
        if is_written:
            observer.response_written(perf_counter() - began_s)
        return is_written

    return write


async def _write_one(entry: OutboxEntry[Any], context: Context, observer: ApiObserver) -> bool:
    """Writes one response. Returns whether the client is still there."""
    response, on_written = entry
    if on_written is not None and isinstance(response, CoroutineType):
        response = await response
    began_s = perf_counter()
    try:
        await context.write(response)
    except grpc.aio.InternalError:  # see `_write`
        return False
    observer.response_written(perf_counter() - began_s)
    if on_written is not None:
        on_written()
    return True

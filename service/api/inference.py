"""The `Inference` service: reads requests, passes them to the domain, and writes responses."""

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
from service.sessions.limits import SessionLimits
from service.sessions.registry import Registry
from service.sessions.served import Served
from service.sessions.session import Session

Context = grpc.aio.ServicerContext[Any, Any]
_OUTBOX_LIMIT = 256


class Inference(inference_pb2_grpc.InferenceServicer):
    """Serves the calls of `Inference`. reset: see `Wire.reset`. streams: those that have not ended."""

    def __init__(self, domain: Domain, observer: ApiObserver, reset: Callable[[Context], None]) -> None:
        self._domain = domain
        self._observer = observer
        self._reset = reset
        self.streams: set[Stream] = set()
        self._watches: set[Watch] = set()

    def end_streams(self) -> None:
        """Ends each stream as soon as the requests that it has read are answered, and each watch at once."""
        for stream in list(self.streams):
            stream.end()
        for watch in list(self._watches):
            watch.end()

    def go_away(self, grace_s: float) -> None:
        """Sends GoAway to every stream. grace_s: seconds until the server ends the streams."""
        for stream in list(self.streams):
            stream.replies.notify(answers.go_away(grace_s))

    # The generated base class declares iterators; grpc.aio also accepts a coroutine that calls `context.write`.

    async def Stream(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Serves many requests of many sessions until the client ends the stream."""
        outbox: Outbox[pb.StreamResponse] = Outbox(_OUTBOX_LIMIT, _at_once(context, self._observer))
        stream = Stream(self._domain, CALLER.get(), self._observer, outbox)
        report = current_call()
        self.streams.add(stream)
        try:
            async with asyncio.TaskGroup() as group:
                # two tasks: waking up a task costs time for each coroutine between the task and what it awaits
                reader = group.create_task(
                    _read(stream, outbox, context, self._observer, self._domain.sessions.registry)
                )
                await group.create_task(_write(outbox, context, self._observer))
                malformed = reader.done() and reader.result()
                reader.cancel()
        finally:
            self.streams.discard(stream)
            stream.disconnect()
            report.models |= stream.models
            stream.replies.report(report)
        if malformed:
            raise InvalidFieldError("a message cannot be decoded as a StreamRequest: the stream ends")
        if stream.is_ended_by_server:
            raise ShuttingDownError("the server is shutting down: open a new stream", retry_delay_s=1.0)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """Generates once, in a session that exists only for this call."""
        served = self._find(request)
        decoding = convert.decoding(request.decoding, served.bundle, field="decoding")
        outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse] = Outbox(_OUTBOX_LIMIT)
        call = OneShot(self._domain, CALLER.get(), outbox)
        try:
            call.generate(_open(call, served, request, self._domain.sessions.limits), decoding)
            await _write(outbox, context, self._observer)
            call.raise_failure()
        finally:
            call.end()

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Returns the scores of targets, in a session that exists only for this call."""
        served = self._find(request)
        limits = self._domain.sessions.limits
        targets = convert.targets(request.targets, served.bundle, limits, field="targets")
        outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse] = Outbox(_OUTBOX_LIMIT)
        call = OneShot(self._domain, CALLER.get(), outbox)
        try:
            call.score(_open(call, served, request, limits), targets, with_end=request.with_end)
            taken = await outbox.next()
            call.raise_failure()
            assert taken is not None  # noqa: S101  # only a failure closes it without a response
            response = taken[0]
            assert isinstance(response, pb.ScoreResponse)  # noqa: S101  # a score was asked for
            return response
        finally:
            call.end()

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """Opens, feeds and closes one session without a stream: see `step`."""
        return await Step(self._domain, CALLER.get()).answer(request)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        """Writes what happens to one session: see `watch`."""
        watch = await Watch.begin(self._domain.sessions, CALLER.get(), request.session_id)
        report = current_call()
        self._watches.add(watch)
        try:
            await watch.send(context.write)
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
        """Returns the model of a call. Raises what `Hosting.find` raises."""
        current_call().used(self._domain.hosting.known(request.model))
        return self._domain.hosting.find(request.model, request.version, request.variant)


def _open(
    call: OneShot, served: Served, request: pb.GenerateRequest | pb.ScoreRequest, limits: SessionLimits
) -> Session:
    """Opens the session of a call, with the source, the prompt and the constants of its request."""
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
    """Reads requests up to the client's last one. Returns whether a message could not be decoded, which ends the
    stream."""
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
            leases.mark_unconfirmed()
        if outbox.hold():
            # `handle` answers a lone session before it returns: writing the response here saves a task switch
            stream.handle(request)
            is_there = not outbox.waiting or await _write_one(outbox.take(), context, observer)
            outbox.end_hold()
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
    """Writes responses until the outbox is closed and empty, or the client has disconnected."""
    while True:
        if outbox.waiting:
            response, on_written = outbox.take()
            if on_written is not None and isinstance(response, CoroutineType):
                response = await response
            began_s = perf_counter()
            try:
                await context.write(response)
            except grpc.aio.InternalError:  # grpc raises this when the client has disconnected
                return
            observer.response_written(perf_counter() - began_s)
            if on_written is not None:
                on_written()
        elif outbox.is_closed:
            return
        else:
            await outbox.arrival()


def _at_once(context: Any, observer: ApiObserver) -> Callable[[pb.StreamResponse], bool] | None:
    """Returns a function that writes a response without waiting; None if the wire cannot do so: see `Wire.open`."""
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
    """Writes one response. Returns whether the client is still connected."""
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

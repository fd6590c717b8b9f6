"""The `Inference` service: reads, hands over, writes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from service.api import convert
from service.api.catalog import Catalog
from service.api.generation import Generation
from service.api.outbox import Item, Outbox
from service.api.stream import Stream
from service.observer import ApiObserver
from service.sessions.dispatcher import Dispatcher
from service.sessions.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]
_OUTBOX_LIMIT = 256


class Inference(inference_pb2_grpc.InferenceServicer):
    """Runs models over sessions."""

    def __init__(self, catalog: Catalog, registry: Registry, dispatcher: Dispatcher, observer: ApiObserver) -> None:
        self._catalog = catalog
        self._registry = registry
        self._dispatcher = dispatcher
        self._observer = observer
        self._streams: set[Stream] = set()

    def end_streams(self) -> None:
        """Lets every stream end as soon as the requests that it has read are answered."""
        for stream in self._streams:
            stream.last_read()

    # The generated base class promises iterators; grpc.aio serves a coroutine that calls `context.write` as well.

    async def Stream(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Many requests of many sessions, for as long as the client stays."""
        outbox: Outbox[pb.StreamResponse] = Outbox(_OUTBOX_LIMIT)
        stream = Stream(self._catalog, self._registry, self._dispatcher, self._observer, outbox)
        self._streams.add(stream)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(_read(stream, outbox, context))
                await _write(outbox, context)
                reader.cancel()
        finally:
            self._streams.discard(stream)
            stream.disconnect()

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """One generation in a session of its own."""
        served = self._catalog.find(request.model, request.version)
        bundle = served.bundle
        source = convert.source_ids(request.source, bundle) if request.HasField("source") else None
        prompt = None
        if request.HasField("prompt"):
            prompt = convert.sequence_ids(request.prompt, bundle.target_vocabulary, field="prompt")
        decoding = convert.decoding(
            request.decoding, bundle.target_vocabulary, bundle.manifest.max_tokens, field="decoding"
        )
        outbox: Outbox[pb.GenerateResponse] = Outbox(_OUTBOX_LIMIT)
        generation = Generation(self._registry, self._dispatcher, outbox)
        try:
            generation.start(served, source, prompt, decoding)
            await _write(outbox, context)
            generation.raise_failure()
        finally:
            generation.end()


async def _read(stream: Stream, outbox: Outbox[pb.StreamResponse], context: Context) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        if outbox.hold():
            # a lone session is answered before `handle` returns: its answer is written from here, sparing a task switch
            stream.handle(request)
            if (taken := outbox.take()) is not None:
                await _write_one(taken, context)
            outbox.let_go()
        else:
            stream.handle(request)
        if outbox.is_full:
            await outbox.room()
    stream.last_read()


async def _write(outbox: Outbox[Any], context: Context) -> None:
    while (taken := await outbox.next()) is not None:
        await _write_one(taken, context)


async def _write_one(taken: Item[Any], context: Context) -> None:
    response, on_written = taken
    await context.write(response)
    if on_written is not None:
        on_written()

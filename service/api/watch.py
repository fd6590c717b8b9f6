"""One `Inference.Watch` call: turns what happens to a session into messages, at the pace of the reader. Event loop
only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Self, TypeAlias

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert, session_messages, vectors
from service.api.caller import Caller
from service.api.hypotheses import hypotheses_found
from service.api.part import Part, pieces
from service.engine.jobs import Item
from service.engine.results import Generated, Searched
from service.errors import ShuttingDownError
from service.sessions.service import SessionService
from service.sessions.session import CloseReason
from service.sessions.watches import Change, Consumed, Watcher, WatchEvent

Write: TypeAlias = Callable[[pb.WatchResponse], Awaitable[None]]
_MAX_TOKENS = 1000
"""The most consumed tokens in one message."""
_LAST_WRITE_S = 2.0
"""Seconds that a reader has for the message that is being written when the watch fails."""
_LAST_EVENTS_S = 60.0
"""Seconds that a reader has for all unread messages when the session ends."""
_CHANGES = {
    Change.ATTACHED: pb.SESSION_CHANGE_ATTACHED,
    Change.DETACHED: pb.SESSION_CHANGE_DETACHED,
    Change.SET_BACK: pb.SESSION_CHANGE_SET_BACK,
    Change.CANCELLED: pb.SESSION_CHANGE_CANCELLED,
    Change.SPILLED: pb.SESSION_CHANGE_SPILLED,
    Change.UNSPILLED: pb.SESSION_CHANGE_UNSPILLED,
}


class Watch:
    """The state of one call. Made by `begin`; `close` must be called. session_id: as the caller spells it;
    max_answer_bytes: the most bytes of a message."""

    def __init__(self, watcher: Watcher, session_id: str, max_answer_bytes: int) -> None:
        self._watcher = watcher
        self._session = watcher.session
        self._bundle = watcher.session.served.bundle
        self._session_id = session_id
        self._max_bytes = max_answer_bytes
        self.is_given_up = False
        """Whether the watch is over and its reader did not read the rest in time. The reader would not read the error
        either."""
        self.model = self._bundle.model
        self.num_written = 0

    @classmethod
    async def begin(cls, sessions: SessionService, caller: Caller, session_id: str) -> Self:
        """Starts to watch a session of this server. Raises what `Resume.here` raises, InvalidFieldError and
        TooManyWatchersError."""
        session = await sessions.resume.here(caller.any_key(session_id))
        watcher = sessions.watches.watch(sessions.registry.here(session))
        return cls(watcher, caller.shown(session.id), sessions.limits.max_answer_bytes)

    async def send(self, write: Write) -> None:
        """Writes what happens until the session ends.

        Raises the error that ends the watch earlier, at most `_LAST_WRITE_S` seconds after it occurred, even if nobody
        reads. Raises WatcherDroppedError also if the reader has unread messages `_LAST_EVENTS_S` seconds after the
        session's end.
        """
        try:
            async with asyncio.timeout(None) as limit:
                self._watcher.on_over = partial(self._end_soon, limit)
                await self._send_all(write)
        except TimeoutError:
            if not limit.expired():
                raise
            self.is_given_up = True
        finally:
            self._watcher.on_over = None
        if self.is_given_up:  # raised outside `except`, whose error would keep the message in memory
            raise self._watcher.drop()

    def end(self) -> None:
        """Ends the watch because the server shuts down."""
        self._watcher.leave(ShuttingDownError("the server is shutting down: watch again", retry_delay_s=1.0))

    def close(self) -> None:
        """Removes the watcher, because the call has ended."""
        self._watcher.close()

    def _end_soon(self, limit: asyncio.Timeout) -> None:
        if not limit.expired():
            left_s = _LAST_EVENTS_S if self._watcher.failure is None else _LAST_WRITE_S
            limit.reschedule(asyncio.get_running_loop().time() + left_s)

    async def _send_all(self, write: Write) -> None:
        async def counted(response: pb.WatchResponse) -> None:
            await write(response)
            self.num_written += 1

        while (event := await self._watcher.next()) is not None:
            await self._send(event, counted)
            await asyncio.sleep(0)  # others run between two messages

    async def _send(self, event: WatchEvent, write: Write) -> None:
        position, happening, bundle = event.moment[1], event.happening, self._bundle
        if isinstance(happening, Consumed):
            await self._send_consumed(position, happening, write)
        elif isinstance(happening, Generated):
            for piece in pieces(happening, bundle, self._max_bytes):
                part = Part(bundle, self._max_bytes)
                part.add(piece)
                await write(self._response(piece.position, generated=part.take()))
        elif isinstance(happening, Searched):
            found = await hypotheses_found(happening._replace(before=None), bundle)
            await write(self._response(position, generated=found))
        elif isinstance(happening, CloseReason):
            closed = pb.Closed(reason=session_messages.close_reason(happening))
            await write(self._response(position, closed=closed))
        elif happening is Change.WATCHED:
            await write(self._response(position, watching=answers.described(self._session)))
        else:
            await write(self._response(position, changed=pb.Changed(change=_CHANGES[happening])))

    async def _send_consumed(self, position: int, consumed: Consumed, write: Write) -> None:
        """Writes consumed items, in several messages if one cannot hold all."""
        items, outputs = consumed
        last = pb.Consumed()
        last.fed.SetInParent()
        await answers.add_outputs(last.fed, outputs, self._session)
        size = min(_MAX_TOKENS, max(1, self._max_bytes // (2 * self._session.served.item_bytes)))
        for begin in range(0, len(items), size):
            part = self._part(items[begin : begin + size])
            if begin + size >= len(items) and part.ByteSize() + last.ByteSize() <= self._max_bytes:
                last.MergeFrom(part)
                break
            end = min(begin + size, len(items))
            await write(self._response(position - len(items) + end, fed=part))
            await asyncio.sleep(0)
        await write(self._response(position, fed=last))

    def _part(self, items: Sequence[Item]) -> pb.Consumed:
        bundle = self._bundle
        if bundle.step_vocabulary is None:
            return pb.Consumed(features=vectors.tensor(items, bundle.manifest.step.feature_size))
        return pb.Consumed(tokens=convert.source_tokens(items, bundle.step_vocabulary))

    def _response(self, position: int, **happening: Any) -> pb.WatchResponse:
        return pb.WatchResponse(session_id=self._session_id, position=position, **happening)

"""How a stream gets its sessions: new ones, and those that are gone on with.

Most are open at once. Others have to wait: for the store, for another server to let go, or for a slot; requests of
theirs that come meanwhile are parked. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert, session_messages
from service.api.caller import Caller
from service.api.domain import Domain
from service.api.parking import Parking
from service.api.replies import Replies
from service.engine.items import Item
from service.engine.results import Result
from service.errors import CarouselError, InvalidFieldError, NoSlotError, SessionAlreadyOpenError
from service.sessions.session import OnClosed, Request, Served, Session
from service.sessions.terms import Durability, Terms

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Stream(Protocol):
    """What openings need of their stream."""

    replies: Replies

    def on_opened(self, source: Sequence[Item] | None, request: Request, result: Result) -> None:
        """A session is open, or could not be opened."""

    def on_closed(self, session: Session, reason: Any) -> None:
        """Somebody else has closed a session."""

    def took(self, session: Session) -> None:
        """The stream has a session from here on."""


class Openings:
    """Opens the sessions of one stream."""

    def __init__(self, domain: Domain, caller: Caller, stream: Stream, parking: Parking, spawn: Spawn) -> None:
        self._domain = domain
        self._caller = caller
        self._stream = stream
        self._parking = parking
        self._spawn = spawn
        self._on_closed: OnClosed = stream.on_closed

    def open(self, request: pb.StreamRequest, known: Session | None) -> None:
        """Takes an opening in. known: the stream's own session of that id. Raises what refuses it at once."""
        message = request.open
        if message.HasField("resume"):
            session_messages.check_resume(message)
            if not request.session_id:
                raise InvalidFieldError("session_id is missing: open.resume goes on with a session", field="session_id")
            if known is None:
                self._later(request, self._resume(request))
            else:
                self._stream.replies.answer(answers.resumed(request.request_id, known, is_here=True))
            return
        if known is not None:
            raise SessionAlreadyOpenError(
                f"open: session {known.name!r} is open on this stream already, at position {known.position}",
                field="session_id",
                session_id=known.name,
                position=known.position,
            )
        served = self._domain.hosting.find(message.model, message.version, message.variant)
        terms = session_messages.terms(message, self._domain.terms_limits)
        if request.session_id and terms.durability is not Durability.NONE:
            self._later(request, self._reserve(request, served, terms))
            return
        try:
            self._open(request, served, terms, 1)
        except NoSlotError as error:
            self._later(request, self._open_in_turn(request, served, terms, 1, error))

    def _open(self, request: pb.StreamRequest, served: Served, terms: Terms, epoch: int) -> None:
        message = request.open
        source = convert.source_items(message.source, served.bundle) if message.HasField("source") else None
        outputs = None
        if message.HasField("outputs"):
            outputs = convert.output_spec(message.outputs, served.bundle, field="open.outputs")
        self._caller.check_room(self._domain.registry)
        session = self._domain.registry.open(
            served,
            self._caller.new_key(request.session_id),
            source,
            outputs,
            request_id=request.request_id,
            reply=partial(self._stream.on_opened, source),
            on_closed=self._on_closed,
            terms=terms,
            epoch=epoch,
        )
        self._stream.took(session)

    def _later(self, request: pb.StreamRequest, work: Coroutine[Any, Any, None]) -> None:
        self._parking.reserve(request.session_id)
        self._spawn(self._finish(request, work))

    async def _finish(self, request: pb.StreamRequest, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CarouselError as error:
            self._stream.replies.refuse(request.request_id, request.session_id, None, error)
            self._stream.replies.done()
        self._parking.release(request.session_id, None)

    async def _reserve(self, request: pb.StreamRequest, served: Served, terms: Terms) -> None:
        epoch = await self._domain.resumption.reserve(self._caller.key(request.session_id), terms)
        await self._open_in_turn(request, served, terms, epoch, None)

    async def _open_in_turn(
        self, request: pb.StreamRequest, served: Served, terms: Terms, epoch: int, error: NoSlotError | None
    ) -> None:
        while True:
            if error is not None:
                await self._domain.residency.make_room(served.engine, error)
            try:
                self._open(request, served, terms, epoch)
            except NoSlotError as again:
                error = again
            else:
                return

    async def _resume(self, request: pb.StreamRequest) -> None:
        key = self._caller.key(request.session_id)
        session, is_here = await self._domain.resumption.resume(key, self._on_closed)
        self._stream.took(session)
        self._stream.replies.answer(answers.resumed(request.request_id, session, is_here=is_here))

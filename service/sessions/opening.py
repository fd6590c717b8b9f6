"""How sessions begin: new sessions, and sessions made from an image. Event loop only.

Rules:

1. A request is checked completely before it takes the id. The store is not asked before the server has room.
2. A session exists, in OPENING, as soon as it has its id. Requests that arrive before it is open wait.
3. A stored session reserves its id in the store. For another id chosen by the client, the server asks the store whether
   a stored session has it; without an answer, the session begins, and is checked when it is resumed.
4. An opening that fails returns its id, its slot and its reservation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from service.background import Tasks, awaited
from service.engine.jobs import EncodeJob, FeedJob, Item, Job, Lane, OutputSpec
from service.engine.results import Encoded, Failed, Result
from service.errors import (
    CarouselError,
    NoSlotError,
    RequestCancelledError,
    SessionIdInUseError,
    SessionNotOpenError,
    StoreUnavailableError,
)
from service.sessions.checks import check_open, check_session_id
from service.sessions.claims import ClaimedImage
from service.sessions.constants import Given, with_number
from service.sessions.directory import random_name
from service.sessions.image import Image, check_fits, last_in
from service.sessions.lifecycle import Event
from service.sessions.limits import SessionLimits
from service.sessions.not_stored import opening_not_stored
from service.sessions.persistence import PLAIN, Persistence, SessionPolicy
from service.sessions.registry import Registry
from service.sessions.request import Request
from service.sessions.served import Served
from service.sessions.session import CloseReason, OnEnded, Session, no_stream
from service.sessions.spill import NO_LANE, Spill
from service.sessions.storage import Storage

_PATIENCE_S = 5.0  # for the last record of an ended session of the same id


@dataclass(slots=True, eq=False)
class NewSession:
    """The arguments of an opening. on_ended: of its stream. num_bytes: memory that the request takes."""

    session: Session
    request: Request
    on_ended: OnEnded
    source: Sequence[Item] | None
    outputs: OutputSpec | None
    is_chosen: bool
    num_bytes: int
    given: Given

    @property
    def is_taken_over(self) -> bool:
        """Whether another stream resumed the session before its opening was answered."""
        return self.session.on_ended not in (self.on_ended, no_stream)


class Opening:
    """Opens sessions."""

    def __init__(self, registry: Registry, spill: Spill, storage: Storage, tasks: Tasks, limits: SessionLimits) -> None:
        self._registry = registry
        self._spill = spill
        self._storage = storage
        self._tasks = tasks
        self._limits = limits
        self.num_waiting = 0
        """Openings that wait for the store or for a slot."""

    def prepare(
        self,
        served: Served,
        session_id: str,
        source: Sequence[Item] | None,
        outputs: OutputSpec | None,
        *,
        request: Request,
        on_ended: OnEnded,
        policy: SessionPolicy = PLAIN,
        is_chosen: bool = True,
        max_owned: int | None = None,
        num_bytes: int = 0,
        within: str = "",
        given: Given = None,
    ) -> NewSession:
        """Makes a session in OPENING, which owns its id. The caller must call `begin` next. session_id: "" generates
        one. is_chosen: whether a client chose it. max_owned: how many sessions the principal may have. within: see
        `check_open`. given: the constants of the session.

        Raises InvalidFieldError, SessionIdInUseError, ShuttingDownError, TooManySessionsError, QueueFullError.
        """
        registry = self._registry
        registry.check_open()
        if session_id:
            check_session_id(session_id)
        answer_bytes = check_open(
            served.bundle.manifest,
            source,
            outputs,
            max_answer_bytes=self._limits.max_answer_bytes,
            variant=served.variant,
            token_bytes=served.bundle.max_token_bytes,
            source_token_bytes=served.bundle.max_source_token_bytes,
            within=within,
        )
        request.reserve(answer_bytes)
        is_chosen = is_chosen and bool(session_id)
        session = registry.make(served, session_id or random_name(), NO_LANE, on_ended)
        if not policy.is_plain:
            session.persistence = Persistence(policy)
        registry.deferral.reserve(num_bytes)
        try:
            registry.directory.add(session, max_owned)
        except CarouselError:
            registry.deferral.release(num_bytes)
            raise
        request.session = session
        given = with_number(served.bundle.manifest, session.id, given)
        return NewSession(session, request, on_ended, source, outputs, is_chosen, num_bytes, given)

    def begin(self, new: NewSession) -> None:
        """Opens a session, at once where possible. Answers `new.request` with the result of the last step: `Fed` when
        outputs were requested, else `Encoded`; or `Failed`, and the session has ended."""
        waits = new.is_chosen
        if not waits:
            try:
                self._start(new, new.session.served.engine.open(new.source or (), new.given))
            except NoSlotError:
                waits = True  # another session may be spilled
            except CarouselError as error:
                self._fail(new, error)
        if waits:
            self.num_waiting += 1
            self._tasks.start(self._finish(new))
        else:
            self._registry.deferral.release(new.num_bytes)

    def make(
        self,
        image: Image,
        served: Served,
        session_id: str,
        *,
        max_owned: int | None = None,
        claimed: ClaimedImage | None = None,
    ) -> asyncio.Task[Session]:
        """Makes a session from an image, without a stream. It has its id and its place at once; the returned task
        finishes it, and raises the reason for a failure. session_id: "" generates one. claimed: the record that this
        server has claimed; None: the task takes the id first.

        Raises SnapshotModelError when the state does not fit the model, SessionIdInUseError, ShuttingDownError,
        TooManySessionsError, StoreUnavailableError.
        """
        registry = self._registry
        registry.check_open()
        check_fits(image, served)
        if session_id:
            check_session_id(session_id)
        session = registry.make(served, session_id or random_name(), NO_LANE, no_stream)
        persistence = session.persistence = Persistence(
            image.policy, marks=dict(image.marks), opened_at=image.opened_at
        )
        if claimed is not None:
            persistence.epoch, persistence.has_record = claimed.epoch, True
            persistence.renew_at_s = registry.clock() + 0.5 * claimed.ttl_s
            persistence.stored, persistence.is_fetched = (0, image.lane.position), True
        registry.directory.add(session, max_owned)
        return self._tasks.start(self._finish_image(session, image, claimed, is_chosen=bool(session_id)))

    async def _finish_image(
        self, session: Session, image: Image, claimed: ClaimedImage | None, *, is_chosen: bool
    ) -> Session:
        """Takes the id of a session in OPENING if needed, and writes the image into its lane."""
        registry, served, persistence = self._registry, session.served, session.persistence
        try:
            if claimed is None and is_chosen:
                await self._take_id(session)
            lane = await self._spill.lane(served.engine)
            if session.is_over:
                served.engine.close(lane)
                raise persistence.moved or registry.tombstones.not_found(session.id)
        except CarouselError as error:
            if not session.is_over:
                registry.fail(session, error)
            raise
        registry.start(session, lane)
        served.engine.write(lane, image.lane)
        session.position, session.last = image.lane.position, last_in(image)
        persistence.is_attached = False
        if claimed is not None:  # held for as long as its record lasts
            registry.hold(session, max(image.policy.duration_s, self._limits.idle_timeout_s))
        else:  # a copy waits like a detached session; FREE has no duration
            registry.hold(session, image.policy.duration_s or self._limits.hold_s)
            registry.checkpoints.changed(session)
            registry.keep(session)
        registry.deferral.run(session)
        if claimed is None:
            await self._stored(session)
        return session

    async def _stored(self, session: Session) -> None:
        """Waits until a strict session is stored. Closes it when it cannot be stored. Raises StoreUnavailableError."""
        stored, give = awaited()
        self._registry.checkpoints.after_pending(session, give)
        error: CarouselError | None = await stored
        if error is not None:
            self._registry.close(session, CloseReason.FAILED, notify=True)
            raise opening_not_stored(session, error)

    async def _finish(self, new: NewSession) -> None:
        """Opens a session that had to wait."""
        session, engine = new.session, new.session.served.engine
        try:
            if new.is_chosen:
                await self._take_id(session)
            lane = None if session.is_over else await self._spill.lane(engine, new.source or (), new.given)
            if session.is_over:
                if lane is not None:
                    engine.close(lane)
                raise SessionNotOpenError(f"session {session.name!r} ended before it was open", field="session_id")
            if lane is not None:
                self._start(new, lane)
        except CarouselError as error:
            self._fail(new, error)
        finally:
            self.num_waiting -= 1
            self._registry.deferral.release(new.num_bytes)

    async def _take_id(self, session: Session) -> None:
        """Makes sure that no stored session has the id. Raises SessionIdInUseError and StoreUnavailableError."""
        registry, persistence = self._registry, session.persistence
        await registry.directory.wait_until_ended(session.id, _PATIENCE_S)
        if session.is_over:
            return  # a reservation made now would never be released
        is_free = True
        if not session.policy.is_stored:
            try:
                is_free = not await self._storage.has(session.id)
            except StoreUnavailableError:
                session.own_persistence().is_unverified = True
        else:
            with persistence.claiming():
                epoch = await self._storage.reserve(session.id, registry.leases.ttl_s(session))
                if epoch is not None:
                    persistence.epoch, persistence.has_record = epoch, True
            is_free = epoch is not None
        if not is_free:
            raise SessionIdInUseError(
                f"session_id = {session.name!r} is in use by a stored session: resume it, or close it",
                field="session_id",
                session_id=session.name,
            )

    def _start(self, new: NewSession, lane: Lane) -> None:
        """Submits the first jobs of a session. Raises QueueFullError after it has freed the lane."""
        session, request, engine = new.session, new.request, new.session.served.engine
        jobs: list[Job] = []
        if new.source is not None:
            jobs.append(EncodeJob(reply=self._on_prepared, tag=request, source=new.source))
        if new.outputs is not None:
            jobs.append(FeedJob(reply=self._on_prepared, tag=request, start=0, tokens=[], outputs=new.outputs))
        if jobs:
            jobs[-1].reply = partial(self._on_opened, new)
        try:
            engine.submit(lane, *jobs)
        except CarouselError:
            engine.close(lane)
            raise
        self._registry.start(session, lane)
        if jobs:
            session.state, session.num_in_flight = session.transition_for(Event.FEED).state, len(jobs)
        else:
            self._registry.checkpoints.changed(session)
            self._answer(new, Encoded(0))
        self._registry.deferral.run(session)

    def _fail(self, new: NewSession, error: CarouselError) -> None:
        new.request.deliver(Failed(0, error))
        if not new.session.is_over:
            self._registry.fail(new.session, error)

    def _on_prepared(self, job: Job, result: Result) -> None:
        """Records a step of an opening before the last one. When it fails, the last step fails, too."""
        job.tag.session.request_done(result)

    def _on_opened(self, new: NewSession, job: Job, result: Result) -> None:
        request, session, registry = new.request, new.session, self._registry
        session.request_done(result)
        if not session.is_over:
            registry.directory.touch(session, registry.clock())
            registry.checkpoints.changed(session)
        if request.trace is not None:
            request.trace.ended("open", session.served.bundle.model, session.served.bundle.version, 0)
        if isinstance(result, Failed) and not (new.is_taken_over and isinstance(result.error, RequestCancelledError)):
            registry.close(session, CloseReason.FAILED, notify=new.is_taken_over)  # no Cancel of a new stream ends it
        self._answer(new, result)

    def _answer(self, new: NewSession, result: Result) -> None:
        """Answers an opening; for a strict session, when it is stored. An opening that cannot be stored fails, but the
        session stays when another stream has already resumed it."""
        request, session, registry = new.request, new.session, self._registry

        def answer(error: CarouselError | None) -> None:
            request.deliver(result if error is None else Failed(0, opening_not_stored(session, error)))
            if error is not None and not new.is_taken_over:
                registry.close(session, CloseReason.FAILED, notify=False)

        registry.checkpoints.after_pending(session, answer)

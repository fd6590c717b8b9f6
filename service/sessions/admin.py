"""Reads and changes sessions from outside: snapshots, forks, rewinds, state tensors.

Each call waits behind the deferred requests of its session. No call changes a session with requests in flight. Event
loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

import numpy as np

from service.background import awaited
from service.engine.arena import Array
from service.engine.results import LaneState
from service.errors import (
    CarouselError,
    InvalidFieldError,
    MarkNotFoundError,
    SessionIdInUseError,
    StoreUnavailableError,
    quoted,
)
from service.observer import SessionObserver
from service.repository.manifest import Manifest, StateSpec
from service.sessions.checkpoints import MIDST_S
from service.sessions.constants import refused_choice
from service.sessions.image import Image, image_of
from service.sessions.lifecycle import Event
from service.sessions.persistence import Durability
from service.sessions.registry import Registry
from service.sessions.resume import Resume
from service.sessions.session import Session
from service.sessions.snapshot import Codec
from service.sessions.spill import Spill
from service.sessions.watches import Change

T = TypeVar("T")
_MOST_EMITTED = 2**53
"""The most emitted tokens that a client may write into a state: far below the limit of 64 bits."""


class StateTensor:
    """A state tensor in its wire form. data: row-major, little-endian."""

    __slots__ = ("data", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: str, shape: Sequence[int], data: bytes) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = list(shape)
        self.data = data


class Admin:
    """Reads and writes sessions of this server, and sessions in the store, which are resumed here first."""

    def __init__(
        self, registry: Registry, resume: Resume, spill: Spill, *, codec: Codec, observer: SessionObserver
    ) -> None:
        self._checkpoints = registry.checkpoints
        self._watches = registry.watches
        self._resume = resume
        self._spill = spill
        self._codec = codec
        self._observer = observer

    async def snapshot(self, session_id: str) -> tuple[bytes, int]:
        """Returns a session's snapshot, and the position in it. Raises SessionNotFoundError and what `Resume.find`
        raises."""
        _, image = await self._image(session_id)
        snapshot = await asyncio.to_thread(self._codec.encode, image)
        self._observer.snapshot_made(len(snapshot))
        return snapshot, image.lane.position

    async def fork(self, session_id: str, fork_id: str, max_owned: int | None = None) -> Session:
        """Makes a copy of a session without its unfinished generation. fork_id: "" generates one. max_owned: see
        `Opening.prepare`. Raises what `snapshot` raises, SessionIdInUseError and TooManySessionsError."""
        if fork_id == session_id:
            raise SessionIdInUseError(
                f"fork_session_id = {fork_id!r} is the session itself: choose another", field="fork_session_id"
            )
        session, image = await self._image(session_id)
        image = replace(image, lane=image.lane._replace(num_produced=0, seen=None), last=None)
        try:
            return await self._resume.make_copy(image, session.served, fork_id, max_owned)
        except SessionIdInUseError as error:
            raise SessionIdInUseError(
                f"fork_{error.message}", field="fork_session_id", session_id=error.facts.get("session_id")
            ) from error

    async def rewind(self, session_id: str, position: int) -> Session:
        """Sets a session back to a mark. Raises MarkNotFoundError, IllegalRequestError when requests are in flight, and
        what `snapshot` raises. Raises StoreUnavailableError when the rewound session could not be stored."""

        def act(session: Session) -> Session:
            session.check(Event.REWIND)
            marks = session.persistence.marks
            mark = marks.get(position)
            if mark is None:
                known = ", ".join(map(str, marks)) or "none"
                raise MarkNotFoundError(
                    f"position = {position}: session {session.name!r} has no mark there; its marks: {known}",
                    field="position",
                    marks=known,
                )
            for later in [one for one in marks if one > position]:
                del marks[later]
            self._write(session, mark)
            return session

        session = await self._act(session_id, act)
        await self._store(session)
        return session

    async def read(self, session_id: str, names: Sequence[str]) -> tuple[Session, LaneState, list[StateTensor]]:
        """Returns a session, its state, and its state tensors. names: empty means all tensors. Raises InvalidFieldError
        for a name that the model does not have, and what `snapshot` raises."""
        session = await self._resume.find(session_id)
        specs = _specs(session)
        for name in names:
            _check_name(name, specs, "names")
        _, image = await self._image(session_id)
        lane = image.lane
        tensors = [
            StateTensor(name, spec.input.dtype, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())
            for (name, spec), array in zip(specs.items(), lane.states, strict=True)
            if not names or name in names
        ]
        return session, lane, tensors

    async def write(self, session_id: str, tensors: Sequence[StateTensor]) -> int:
        """Writes state tensors of a session; the other tensors and the position stay. Returns the position. Raises
        InvalidFieldError for a tensor that does not fit the model, IllegalRequestError when requests are in flight, and
        what `rewind` raises."""
        session = await self._resume.find(session_id)
        specs = _specs(session)
        given: dict[str, Array] = {}
        for at, tensor in enumerate(tensors):
            field = f"tensors[{at}]"
            _check_name(tensor.name, specs, f"{field}.name")
            if tensor.name in given:
                raise InvalidFieldError(f"{field}.name = {tensor.name!r} is given twice", field=f"{field}.name")
            given[tensor.name] = _array(tensor, specs[tensor.name], field)
            _check_emitted(session.served.bundle.manifest, tensor.name, given[tensor.name], field)
        if not given:
            raise InvalidFieldError("tensors is empty: it must have 1 tensor or more", field="tensors")
        while True:
            await self._act(session_id, lambda one: one.check(Event.SET_STATE))
            session, image = await self._image(session_id)
            lane = image.lane
            states = [given.get(name, array) for name, array in zip(specs, lane.states, strict=True)]
            moment = (session.persistence.era, lane.position)

            def act(one: Session, states: list[Array] = states, lane: LaneState = lane, was: object = moment) -> bool:
                one.check(Event.SET_STATE)
                if one.moment != was:
                    return False  # it moved after it was read
                self._write(one, lane._replace(states=states, next_logits=None))
                return True

            if await self._act(session_id, act):
                break
        await self._store(session)
        return lane.position  # the session may have moved since

    async def _act(self, session_id: str, act: Callable[[Session], T]) -> T:
        """Calls `act` when the session has a slot and its turn has come. Raises what `act` and `Resume.find` raise."""
        session = await self._resume.find(session_id)
        return await self._spill.act(session, lambda: act(session))

    async def _image(self, session_id: str) -> tuple[Session, Image]:
        """Returns a session and its image, as soon as it is not in the middle of a feed."""
        while True:
            found, give = awaited()

            def act(session: Session, give: Callable[[Image | None], None] = give) -> Session:
                session.check(Event.READ)
                era = session.persistence.era

                def read(states: Sequence[LaneState | None]) -> None:
                    state = states[0]
                    is_there = state is not None and session.persistence.era == era
                    give(image_of(session, state) if is_there and state is not None else None)

                session.served.engine.read([session.lane], read)
                return session

            session = await self._act(session_id, act)
            image: Image | None = await found
            if image is not None:
                return session, image
            await asyncio.sleep(MIDST_S)

    def _write(self, session: Session, state: LaneState) -> None:
        """Replaces the state of a session and begins a new era."""
        session.served.engine.write(session.lane, state)
        session.position, session.last = state.position, None
        session.own_persistence().era += 1
        self._checkpoints.changed(session)
        self._watches.changed(session, Change.SET_BACK)

    async def _store(self, session: Session) -> None:
        """Stores a session that was changed from outside, if its policy stores it. Raises StoreUnavailableError."""
        if session.policy.durability is Durability.NONE or session.is_over:
            return
        stored, give = awaited()
        self._checkpoints.when_stored(session, session.moment, give)
        error: CarouselError | None = await stored
        if isinstance(error, StoreUnavailableError):
            raise StoreUnavailableError(
                f"session {session.name!r} was changed, but the store failed to save the change: send the request"
                " again",
                retry_delay_s=1.0,
            )
        if error is not None:
            raise error


def _specs(session: Session) -> dict[str, StateSpec]:
    """Returns the specifications of the state tensors by name, in the manifest's order."""
    return {state.name: state for state in session.served.bundle.manifest.states}


def _check_name(name: str, specs: Mapping[str, StateSpec], field: str) -> None:
    if name not in specs:
        raise InvalidFieldError(
            f"{field}: {quoted(name)} is not a state tensor of the model: expected one of {', '.join(specs)}",
            field=field,
        )


def _check_emitted(manifest: Manifest, name: str, values: Array, field: str) -> None:
    """Raises InvalidFieldError when the state tensors of a transducer's emitted tokens have invalid token ids or
    counts."""
    emits, vocabulary = manifest.step.emits, manifest.target_vocabulary
    if emits is None or vocabulary is None or not values.size:
        return
    last = vocabulary.size - 1
    most = {emits.history: last, emits.context: last, emits.count: _MOST_EMITTED}.get(name)
    if most is None or (values.min() >= 0 and values.max() <= most):
        return
    wrong = values.min() if values.min() < 0 else values.max()
    raise InvalidFieldError(
        f"{field}.data: {quoted(name)} has {wrong}, but its numbers must be 0 to {most}", field=f"{field}.data"
    )


def _array(tensor: StateTensor, state: StateSpec, field: str) -> Array:
    """Returns a tensor as an array. Raises InvalidFieldError when it does not fit the model."""
    spec = state.input
    if tensor.dtype != spec.dtype:
        raise InvalidFieldError(
            f"{field}.dtype = {quoted(tensor.dtype)} must be {spec.dtype!r}, the type of {tensor.name}",
            field=f"{field}.dtype",
        )
    shape = list(state.row_shape)
    if tensor.shape != shape:
        raise InvalidFieldError(
            f"{field}.shape = {quoted(tensor.shape)} must be {shape}, the shape of {tensor.name}",
            field=f"{field}.shape",
        )
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidFieldError(
            f"{field}.data has {len(tensor.data)} bytes, but {spec.dtype}{shape} needs {expected}",
            field=f"{field}.data",
        )
    value = np.frombuffer(tensor.data, dtype).reshape(shape).astype(spec.dtype)
    if problem := refused_choice(state, value):
        raise InvalidFieldError(f"{field}.data: {tensor.name} = {problem}", field=f"{field}.data")
    return value

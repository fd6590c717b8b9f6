"""Looking into sessions and changing them from outside: snapshots, forks, marks, state tensors.

Event loop only. Nothing here disturbs a session that is at work, and nothing is written to one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from service.engine.arena import Array
from service.engine.lane_state import LaneState
from service.errors import (
    IllegalRequestError,
    InvalidFieldError,
    MarkNotFoundError,
    SessionIdInUseError,
    StoreUnavailableError,
)
from service.observer import SessionObserver
from service.repository.manifest import TensorSpec
from service.sessions.checkpoints import Checkpoints
from service.sessions.image import Image
from service.sessions.imaging import image_of
from service.sessions.live import LiveSessions
from service.sessions.residency import Residency
from service.sessions.resumption import Resumption
from service.sessions.session import Session, State
from service.sessions.snapshot import Codec
from service.sessions.storage import Outcome
from service.sessions.terms import Durability

_MIDST_S = 0.005
"""How long a session that is in the midst of a feed is let be before it is looked at again."""


class StateTensor:
    """A state tensor as it travels. data: row-major, little-endian."""

    __slots__ = ("data", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: str, shape: Sequence[int], data: bytes) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = list(shape)
        self.data = data


class Access:
    """Reads and writes live sessions, and those in the store, which are brought here."""

    def __init__(
        self,
        live: LiveSessions,
        resumption: Resumption,
        residency: Residency,
        checkpoints: Checkpoints,
        *,
        codec: Codec,
        observer: SessionObserver,
    ) -> None:
        self._live = live
        self._resumption = resumption
        self._residency = residency
        self._checkpoints = checkpoints
        self._codec = codec
        self._observer = observer

    async def snapshot(self, session_id: str) -> tuple[bytes, int]:
        """A session as bytes, and its position in them. Raises SessionNotFoundError and what bringing it here
        raises."""
        image = await self._image(await self._find(session_id))
        snapshot = await asyncio.to_thread(self._codec.encode, image)
        self._observer.snapshot_made(len(snapshot))
        return snapshot, image.lane.position

    async def fork(self, session_id: str, fork_id: str) -> Session:
        """A copy of a session, without what it is generating. fork_id: empty to have one made. Raises what `snapshot`
        raises, SessionIdInUseError and TooManySessionsError."""
        session = await self._find(session_id)
        if fork_id == session.id:
            raise SessionIdInUseError(
                f"fork_session_id = {session.name!r} is the session itself", field="fork_session_id"
            )
        image = await self._image(session)
        image = replace(image, lane=image.lane._replace(num_produced=0, seen=None), last=None)
        return await self._resumption.settle(image, session.served, fork_id)

    async def rewind(self, session_id: str, position: int) -> Session:
        """Sets a session back to a mark. Raises MarkNotFoundError, IllegalRequestError when it is at work, and what
        `snapshot` raises; StoreUnavailableError when it was set back and could not be stored so."""
        session = await self._find(session_id)
        self._check_idle(session, "rewind")
        marks = {} if session.custody is None else session.custody.marks
        mark = marks.get(position)
        if mark is None:
            told = ", ".join(map(str, marks)) or "none"
            raise MarkNotFoundError(
                f"position = {position}: session {session.name!r} has no mark there; its marks: {told}",
                field="position",
                marks=told,
            )
        for later in [one for one in marks if one > position]:
            del marks[later]
        session.served.engine.write(session.lane, mark)
        session.position, session.last = position, None
        await self._store(session)
        return session

    async def read(self, session_id: str, names: Sequence[str]) -> tuple[LaneState, list[StateTensor]]:
        """The state tensors of a session, all when no name is given. Raises InvalidFieldError for a name that the model
        has not, and what `snapshot` raises."""
        session = await self._find(session_id)
        specs = _specs(session)
        for name in names:
            _check_name(name, specs, "names")
        lane = (await self._image(session)).lane
        tensors = [
            StateTensor(name, spec.dtype, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())
            for (name, spec), array in zip(specs.items(), lane.states, strict=True)
            if not names or name in names
        ]
        return lane, tensors

    async def write(self, session_id: str, tensors: Sequence[StateTensor]) -> int:
        """Writes state tensors of a session; the others stay. Returns where it is, as before. Raises InvalidFieldError
        for a tensor that is not as the model's, IllegalRequestError when the session is at work, and what `rewind`
        raises."""
        session = await self._find(session_id)
        specs = _specs(session)
        given: dict[str, Array] = {}
        for at, tensor in enumerate(tensors):
            field = f"tensors[{at}]"
            _check_name(tensor.name, specs, f"{field}.name")
            if tensor.name in given:
                raise InvalidFieldError(f"{field}.name = {tensor.name!r} is there twice", field=f"{field}.name")
            given[tensor.name] = _array(tensor, specs[tensor.name], field)
        if not given:
            raise InvalidFieldError("tensors is empty: it must have 1 tensor or more", field="tensors")
        self._check_idle(session, "set_state")
        lane = (await self._image(session)).lane
        self._check_idle(session, "set_state")
        states = [given.get(name, array) for name, array in zip(specs, lane.states, strict=True)]
        session.served.engine.write(session.lane, lane._replace(states=states, next_logits=None))
        session.last = None
        await self._store(session)
        return session.position

    async def _find(self, session_id: str) -> Session:
        session = await self._resumption.find(session_id)
        await self._residency.awake(session)
        return session

    async def _image(self, session: Session) -> Image:
        """A session as it is, as soon as it is not in the midst of a feed."""
        loop = asyncio.get_running_loop()
        while True:
            found: asyncio.Future[Image | None] = loop.create_future()

            def read(states: Sequence[LaneState | None], found: asyncio.Future[Image | None] = found) -> None:
                if not found.done():
                    found.set_result(None if states[0] is None else image_of(session, states[0]))

            session.served.engine.read([session.lane], read)
            image = await found
            if image is not None:
                return image
            await self._find(session.id)  # which raises when it is gone
            await asyncio.sleep(_MIDST_S)

    def _check_idle(self, session: Session, what: str) -> None:
        if session.state is not State.IDLE:
            raise IllegalRequestError(
                f"{what}: session {session.name!r} is {session.state.value}: wait for its answers",
                session_id=session.name,
                state=session.state.value,
            )

    async def _store(self, session: Session) -> None:
        """Stores a session that was changed from outside, if it is one that is stored."""
        custody = session.custody
        if custody is None or custody.terms.durability is Durability.NONE:
            return
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._checkpoints.store(session, lambda outcome: None if done.done() else done.set_result(outcome))
        if await done is Outcome.FAILED:
            raise StoreUnavailableError(
                f"session {session.name!r} was changed, but could not be stored so", retry_delay_s=1.0
            )


def _specs(session: Session) -> dict[str, TensorSpec]:
    """Of the state tensors, by name, in the manifest's order."""
    return {state.name: state.input for state in session.served.bundle.manifest.states}


def _check_name(name: str, specs: Mapping[str, TensorSpec], field: str) -> None:
    if name not in specs:
        raise InvalidFieldError(f"{field}: {name!r} is no state tensor of the model: {', '.join(specs)}", field=field)


def _array(tensor: StateTensor, spec: TensorSpec, field: str) -> Array:
    """Raises InvalidFieldError when a tensor is not as a model's."""
    if tensor.dtype != spec.dtype:
        raise InvalidFieldError(
            f"{field}.dtype = {tensor.dtype!r} must be {spec.dtype!r}, as {tensor.name} is", field=f"{field}.dtype"
        )
    shape = [int(axis) for axis in spec.shape if axis != "batch"]
    if tensor.shape != shape:
        raise InvalidFieldError(
            f"{field}.shape = {tensor.shape} must be {shape}, as {tensor.name} is", field=f"{field}.shape"
        )
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidFieldError(
            f"{field}.data has {len(tensor.data)} bytes, {spec.dtype}{shape} has {expected}", field=f"{field}.data"
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape).astype(spec.dtype)

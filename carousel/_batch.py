"""The client's part of many sessions' exchanges with a server, on one stream. Pure: no I/O, no clock, no threads.

As in `_protocol`, an exchange waits for an answer. Here, requests may also be sent first and their answers awaited
later, in any order. The rules:

1. Each session has a place, 0 and up, in the order of opening, and a handle that the server assigned.
2. A session's position is the start of its next step batch, after those in flight. A step batch always has the
   positions of its sessions, so one that is sent again is applied once.
3. The answer to a refused row has the session's position. Later step batches in flight are refused for that session
   too.
4. `_batch_recovery` records all responses, and resumes the sessions on another stream.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from carousel import _answers, _requests
from carousel._batch_member import Member
from carousel._batch_recovery import BatchRecovery
from carousel._batch_step import BatchStep, StepBatchResult
from carousel._constants import Constants
from carousel._exchange import Exchange
from carousel._home import Unpicklable
from carousel._ports import Parts
from carousel._requests import SessionPolicy, Source
from carousel._resume import Post
from carousel._tensors import Features
from carousel.errors import CarouselError, FailedPreconditionError
from carousel.v1 import inference_pb2 as pb


class BatchProtocol:
    """The sessions of a batch."""

    id = ""
    route = 0

    def __init__(self, policy: SessionPolicy, resume_timeout: float) -> None:
        """resume_timeout: the most seconds that one recovery may take."""
        self.recovery = BatchRecovery(resume_timeout, can_resume=policy.on_disconnect != "free")
        self._policy = policy
        self._ended_by: CarouselError | None = None
        self.num_closed = 0
        """Number of sessions that the program closed with `close_session`."""

    @property
    def num_in_flight(self) -> int:
        """Number of step batches that were sent and whose answers the program has not read."""
        return len(self.recovery.steps)

    def opening(
        self,
        model: str,
        source: Source | None,
        session_id: str,
        *,
        version: int,
        variant: str,
        constants: Constants | None = None,
    ) -> tuple[pb.Open, str]:
        """Makes the message that opens a session. Returns it with `session_id`."""
        message = _requests.open_message(
            model, source=source, version=version, variant=variant, policy=self._policy, constants=constants
        )
        return message, session_id

    def open(self, request: pb.Open, session_id: str) -> pb.StreamRequest:
        """Makes the request to send. `opened` waits for its answer."""
        self.check_open()
        is_own = self.recovery.can_resume and not session_id
        name = secrets.token_urlsafe(9) if is_own else session_id  # a resume needs an id known before the answer
        return self.recovery.open(Member(name, request, self.recovery.timeout_s, has_own_id=is_own))

    def opened(self, request_id: int) -> Exchange[int]:
        """Waits for the answer to an opening. Returns the session's place."""
        self.check_open()
        while request_id not in self.recovery.answers:
            yield None
        member, answer = self.recovery.opened(request_id)
        if answer.HasField("error"):
            raise _answers.error(answer.error)
        self.recovery.members.append(member)
        return len(self.recovery.members) - 1

    def step_batch(self, message: pb.StepBatch, places: Sequence[int]) -> pb.StreamRequest:
        """Makes the request to send. `stepped` waits for its answer. message: with the sessions' handles and
        positions."""
        self.check_open()
        request = self.recovery.number(pb.StreamRequest(step_batch=message))
        step = BatchStep(request, tuple(places))
        members = self.recovery.members
        for place, count in zip(places, step.counts, strict=True):
            members[place].position += count
        self.recovery.steps[request.request_id] = step
        return request

    def stepped(self) -> Exchange[StepBatchResult]:
        """Waits for the answer to the oldest step batch in flight. Raises LookupError if there is none."""
        self.check_open()
        steps, members = self.recovery.steps, self.recovery.members
        if not steps:
            raise LookupError("no step is in flight")
        number, step = next(iter(steps.items()))
        while not step.is_done:
            yield None
        del steps[number]
        if step.refusal is not None:  # no session has consumed anything
            for place, count in zip(step.places, step.counts, strict=True):
                members[place].position -= count
            raise copy.copy(step.refusal)
        for row, error in step.errors.items():
            if error.reason != "OUTPUTS_LOST":
                members[step.places[row]].position = step.position(row)
        return step.result(members[step.places[0]].outputs if step.places else ())

    def resume(self, post: Post) -> Exchange[list[pb.StreamRequest]]:
        """See `BatchRecovery.resume`."""
        return (yield from self.recovery.resume(post))

    def close(self, post: Post) -> Exchange[None]:
        """Closes the sessions, unless they end with the stream. post: sends a request."""
        if self._ended_by is None:
            for request in list(self.recovery.close()):
                if self.recovery.register(request):
                    post(request)
            while self.recovery.closing:
                yield None

    def close_session(self, place: int, post: Post) -> Exchange[None]:
        """Closes one session. post: sends a request. Raises LookupError while a step of it is in flight."""
        self.check_open()
        recovery = self.recovery
        member = _member(recovery.members, place)
        if any(recovery.members[step.places[row]] is member for step in recovery.steps.values() for row in step.rows):
            raise LookupError(f"a step of the session at place {place} is in flight: `receive` its answer first")
        self.num_closed += not member.is_closed
        member.is_closed = True
        if member.ended_by is None and member not in recovery.closing.values():
            request = recovery.close_one(member)
            if recovery.register(request):
                post(request)
        while member.ended_by is None:
            yield None
        recovery.release(member)

    def closed(self) -> None:
        """Records that the program closed the batch."""
        self.lost(FailedPreconditionError("the batch was closed", reason="BATCH_CLOSED"))

    def lost(self, error: CarouselError) -> CarouselError:
        """Records that the batch has ended for good. Returns the error to raise."""
        self._ended_by = self._ended_by or error
        return copy.copy(self._ended_by)

    def interrupt(self) -> pb.StreamRequest | None:
        """Returns None: steps of a batch cannot be cancelled."""
        return None

    def check_open(self) -> None:
        """Raises the error that ended the batch, if it has ended."""
        if self._ended_by is not None:
            raise copy.copy(self._ended_by)


class Poster(Protocol):
    """A stream that can send a request without waiting for its answer."""

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for."""


AnyPoster = TypeVar("AnyPoster", bound=Poster)


class BatchProperties(Unpicklable, Generic[AnyPoster]):
    """The methods of blocking and asyncio batches that do not wait."""

    _protocol: BatchProtocol
    _stream: AnyPoster
    _turn: AbstractContextManager[None]

    def __len__(self) -> int:
        return len(self._protocol.recovery.members)

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each session, by place, after the steps in flight."""
        return tuple(member.position for member in self._protocol.recovery.members)

    @property
    def session_ids(self) -> tuple[str, ...]:
        """The id of each session, by place."""
        return tuple(member.id for member in self._protocol.recovery.members)

    def send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        features: Features | Parts | None = None,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        end: bool | Sequence[bool] = False,
    ) -> None:
        """Sends a step and does not wait for its answer: see `step` and `receive`. Several steps may be in flight."""
        with self._turn:
            self._send(tokens, features, places, top_k=top_k, logits=logits, outputs=outputs, end=end)

    def _send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None,
        features: Features | Parts | None,
        places: Sequence[int] | None,
        *,
        top_k: int | None,
        logits: bool,
        outputs: bool,
        end: bool | Sequence[bool],
    ) -> None:
        protocol, recovery = self._protocol, self._protocol.recovery
        protocol.check_open()
        if places is None:
            places = range(len(recovery.members))
            if protocol.num_closed:
                places = [place for place in places if not recovery.members[place].is_closed]
        members = [_member(recovery.members, place) for place in places]
        if end is True:
            end = [True] * len(members)
        message = _requests.step_batch_message(
            [member.handle for member in members],
            tokens,
            [member.position for member in members],
            features=_requests.vectors(
                features, members[0].inputs if members else (), "step_batch.features", is_last=end
            ),
            feature_size=members[0].feature_size if members else 0,
            top_k=top_k,
            logits=logits,
            outputs=outputs,
        )
        for question in recovery.questions():
            self._stream.post(question)
        self._post(protocol.step_batch(message, places))

    def _check_none_in_flight(self) -> None:
        self._protocol.check_open()
        if self._protocol.num_in_flight:
            raise LookupError("other steps are in flight: `receive` their answers first")

    def _send_openings(self, openings: Sequence[tuple[pb.Open, str]]) -> list[int]:
        """Sends the openings. Returns the request numbers."""
        requests = [self._protocol.open(message, session_id) for message, session_id in openings]
        for request in requests:
            self._post(request)
        return [request.request_id for request in requests]

    def _post(self, request: pb.StreamRequest) -> None:
        if self._protocol.recovery.register(request):
            self._stream.post(request)


def _member(members: Sequence[Member], place: int) -> Member:
    """Returns the session at a place. Raises IndexError if there is none; negative places are not allowed."""
    if not 0 <= place < len(members):
        raise IndexError(f"place = {place} has no session: this batch has opened {len(members)}, counted from 0")
    return members[place]

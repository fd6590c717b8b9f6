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

from carousel import _answers, _arguments, _requests
from carousel._batch_member import Member
from carousel._batch_recovery import BatchRecovery
from carousel._batch_step import BatchStep, StepBatchResult
from carousel._constants import Constants
from carousel._exchange import Exchange
from carousel._requests import SessionPolicy, Source
from carousel._resume import Post
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
        return message, _arguments.text(session_id, "session_id")

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
        member = member_at(recovery.members, place)
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


def member_at(members: Sequence[Member], place: int) -> Member:
    """Returns the session at a place. Raises IndexError if there is none; negative places are not allowed.
    Raises TypeError for a place that is not an integer."""
    if not 0 <= _arguments.integer(place, "place") < len(members):
        raise IndexError(f"place = {place} has no session: this batch has opened {len(members)}, counted from 0")
    return members[place]

"""Keeps what a client needs to resume the sessions of a batch after a lost connection. Pure: no I/O, no clock.

Each session has a `Recovery`, like a session with its own stream, and its rules hold. The additional rules:

1. A step batch is in flight until each of its rows has its last answer. After a lost connection, the rows without an
   answer are sent again, in order, with the handles that their sessions have on the new stream.
2. The server keeps the answer of a step batch only for the stream that sent it. So the client changes to another stream
   when all requests of this one are answered. A step batch that the store could not save is sent again on this one.
3. A row that was applied, and whose answer was lost with its stream, is found by its position. It counts as consumed.
4. A session that has ended fails alone. It gets a handle that no server assigns, so the server refuses its rows.
5. Answers to steps do not report checkpoints. From time to time, all consumed tokens are written to the histories
   together. A session with a long history is asked for its checkpoint, with a resume on the stream that it has.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import partial

from carousel import _answers
from carousel._backoff import CONNECTION_LOST, is_retried
from carousel._batch_member import Journal, Member
from carousel._batch_step import BatchStep
from carousel._exchange import Exchange, LostError, RepeatError
from carousel._refusals import Refusals
from carousel._resume import Post, find, together
from carousel._session_errors import session_closed
from carousel.errors import CarouselError, PositionMismatchError, UnavailableError
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason

_NUM_HANDLES = 2**32
_MAX_KEPT = 1024
"""Number of kept tokens after which the client asks how far the session is stored."""


class BatchRecovery:
    """What one batch needs to be resumed. can_resume: False when the batch ends with its stream.

    backlog: responses that come before any from the stream. members: by place. steps: in flight, by request. answers:
    answers to openings, by request. is_changing_stream: nothing more is sent on the current stream.
    """

    def __init__(self, timeout_s: float, *, can_resume: bool) -> None:
        self.timeout_s = timeout_s
        self.can_resume = can_resume
        self.backlog: deque[pb.StreamResponse] = deque()
        self.members: list[Member] = []
        self.steps: OrderedDict[int, BatchStep] = OrderedDict()
        self.answers: dict[int, pb.StreamResponse] = {}
        self.closing: dict[int, Member] = {}
        self.is_changing_stream = False
        self._openings: dict[int, Member] = {}
        self._by_id: dict[str, Member] = {}
        self._outstanding: dict[int, pb.StreamRequest] = {}
        self._journal = Journal(self.members)
        self._num_over = 0
        self._may_reopen = False
        self._refusals = Refusals()
        self._last_number = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a session to resume, or one whose opening was sent and whose answer was lost."""
        return self.can_resume and (bool(self._by_id) or self._may_reopen)

    def number(self, request: pb.StreamRequest, session_id: str = "") -> pb.StreamRequest:
        """Gives a request its number and its session."""
        self._last_number += 1
        request.request_id, request.session_id = self._last_number, session_id
        return request

    def register(self, request: pb.StreamRequest) -> bool:
        """Records a new request as sent on this stream. Returns False if it must be sent on the next stream."""
        if not self.is_changing_stream:
            self._outstanding[request.request_id] = request
        return not self.is_changing_stream

    def open(self, member: Member) -> pb.StreamRequest:
        """Makes the request that opens a session."""
        request = self.number(pb.StreamRequest(open=member.opening), member.id)
        self._openings[request.request_id] = member
        return request

    def opened(self, number: int) -> tuple[Member, pb.StreamResponse]:
        """Removes an answered opening. Returns its session and the answer."""
        return self._openings.pop(number), self.answers.pop(number)

    def close(self) -> Iterator[pb.StreamRequest]:
        """Drops the steps in flight. Yields the requests that close the sessions."""
        self.steps.clear()
        for member in self._by_id.values() if self.can_resume else ():
            if member.ended_by is None:
                yield self.close_one(member)

    def close_one(self, member: Member) -> pb.StreamRequest:
        """Makes the request that closes a session."""
        request = self.number(pb.StreamRequest(close=pb.Close()), member.id)
        self.closing[request.request_id] = member
        return request

    def release(self, member: Member) -> None:
        """Drops the history of a session that has ended."""
        self._journal.write()
        member.release()

    def questions(self) -> Iterator[pb.StreamRequest]:
        """Yields the requests that ask how far sessions are stored, if it is time to ask."""
        if not self._journal.is_due:
            return
        self._journal.write()
        for member in self._by_id.values():
            if member.recovery.num_kept >= _MAX_KEPT and member.ended_by is None and not self.is_changing_stream:
                yield self.number(pb.StreamRequest(open=pb.Open(resume=pb.Resume())), member.id)

    def received(self, response: pb.StreamResponse) -> bool:
        """Records a response. Returns whether a request made progress.

        Raises LostError when the sessions must be resumed on another stream, and RepeatError for a step batch that the
        store could not save.
        """
        number, kind = response.request_id, response.WhichOneof("response")
        request = self._outstanding.pop(number, None)
        if number in self.steps:
            self._stepped(self.steps[number], response)
        elif number in self._openings:
            self._opened(number, response)
        elif number in self.closing:
            self._closed(number, response)
        elif kind == "go_away":
            self.is_changing_stream = self.can_resume and any(m.recovery.outlives_server for m in self._by_id.values())
        elif response.session_id in self._by_id:
            self._noticed(self._by_id[response.session_id], response)
        if request is not None:
            self._refusals.reset()
        if self.is_changing_stream and not self._outstanding and self.is_open:
            self.backlog.append(response)
            error = UnavailableError("the server is shutting down, or has handed sessions over", reason="GO_AWAY")
            raise LostError(error)
        return request is not None

    def stream_ended(self, error: CarouselError) -> None:
        """Records how the stream ended. Fails the request at fault, and each opening under an id that the program
        chose, because another session may now have that id."""
        failed = [number for number, member in self._openings.items() if not member.has_own_id]
        at_fault = self._refusals.at_fault(error, list(self._outstanding.values()))
        if at_fault is not None:
            failed.append(at_fault.request_id)
        for number in failed:
            if number in self._outstanding and number not in self.answers:
                response = pb.StreamResponse(request_id=number, error=_answers.error_message(error))
                if number in self.steps:
                    self._refuse(self.steps[number], _answers.error(response.error))
                else:
                    self.answers[number] = response
                self.backlog.append(response)
        self._may_reopen = error.reason == CONNECTION_LOST and bool(self._openings.keys() - self.answers.keys())
        self._outstanding.clear()

    def resume(self, post: Post) -> Exchange[list[pb.StreamRequest]]:
        """Resumes all sessions at the same time on a new stream. Returns the requests to send after that. post: sends.

        Ends a session whose resume is refused for good. Raises the error of a session that may be resumed later.
        """
        self._outstanding.clear()
        self.is_changing_stream = False
        self._journal.write()
        feeds: dict[str, list[pb.StreamRequest]] = {name: [] for name in self._by_id}
        for step in self.steps.values():
            for place, feed in () if step.is_done else step.feeds():
                feeds[self.members[place].id].append(feed)
        for name, member in self._by_id.items():
            member.recovery.set_pending_feeds(feeds[name])
        openings = {member.id: number for number, member in self._openings.items() if number not in self.answers}
        exchanges: dict[str, Exchange[object]] = {
            member.id: member.recovery.resume(partial(self.number, session_id=member.id), member.recovery.end)
            for member in self._by_id.values()
            if member.ended_by is None
        }
        for name, number in openings.items():
            if self._openings[number].has_own_id:
                exchanges[name] = find(partial(self.number, session_id=name), self._openings[number].opening)
        results = yield from together(post, exchanges, self._heard)
        later: CarouselError | None = None
        for name, result in results.items():
            if name in self._by_id:
                self._resumed(self._by_id[name], result)
            if isinstance(result, pb.StreamResponse):
                self._opened(openings[name], result)
            elif isinstance(result, CarouselError) and is_retried(result):
                later = result
            elif isinstance(result, CarouselError) and name in openings:
                self.answers[openings[name]] = pb.StreamResponse(error=_answers.error_message(result))
        if later is not None or self.is_changing_stream:
            raise later or UnavailableError("a session was handed over while others were resumed", reason="GO_AWAY")
        self.backlog.append(pb.StreamResponse())  # wakes waiting exchanges, which may have an answer by now
        return self._requests_again()

    def _requests_again(self) -> list[pb.StreamRequest]:
        """Makes the unanswered requests, to send them again on a new stream."""
        requests = [
            pb.StreamRequest(request_id=number, session_id=member.id, open=member.opening)
            for number, member in self._openings.items()
            if number not in self.answers
        ]
        for step in self.steps.values():
            for row in list(step.rows):
                ended_by = self.members[step.places[row]].ended_by
                if ended_by is not None:
                    step.fail(row, copy.copy(ended_by), step.message.positions[row])
            if not step.is_done:
                rows = {row: self.members[step.places[row]] for row in step.rows}
                requests.append(step.resend(rows))
        requests += [
            pb.StreamRequest(request_id=number, session_id=member.id, close=pb.Close())
            for number, member in self.closing.items()
        ]
        self._outstanding = {request.request_id: request for request in requests}
        return requests

    def _heard(self, response: pb.StreamResponse, *, is_asked: bool) -> None:
        """Records a response during a resume. is_asked: whether an exchange waits for it."""
        member = self._by_id.get(response.session_id)
        if member is not None and response.HasField("opened"):
            member.handle, member.restored = response.opened.handle, response.position
        if member is not None and not is_asked:
            self._noticed(member, response)

    def _resumed(self, member: Member, result: object) -> None:
        """Records the result of a session's resume, a response or an error."""
        member.is_away = False
        if isinstance(result, CarouselError) and not is_retried(result):
            self._end(member, result)
        backlog = member.recovery.backlog
        while backlog:
            failed = backlog.popleft()
            step = self.steps[failed.request_id]
            for row in list(step.rows):
                if self.members[step.places[row]] is member:
                    step.fail(row, _answers.error(failed.error), failed.position)
        member.recovery.set_pending_feeds([])

    def _stepped(self, step: BatchStep, response: pb.StreamResponse) -> None:
        if response.HasField("error"):
            self._refuse(step, _answers.error(response.error))
            return
        message, rows = response.batch_stepped, step.rows
        for refused in message.errors if self.can_resume else ():
            if refused.error.reason == "STORE_UNAVAILABLE":
                self._outstanding[response.request_id] = step.request
                raise RepeatError(step.request, _answers.error(refused.error))
        step.receive(message)
        step.rows, to_resume = (), []
        for refused in message.errors:
            row = rows[refused.index]
            member, error = self.members[step.places[row]], _answers.error(refused.error)
            if member.ended_by is not None:
                step.fail(row, copy.copy(member.ended_by), step.message.positions[row])
            elif self._must_be_resumed(member, refused.error):
                to_resume.append(row)
            elif (
                step.is_resent
                and isinstance(error, PositionMismatchError)
                and step.end(row) <= error.expected_position <= member.position
            ):
                step.lose_outputs(row)
            else:
                step.fail(row, error, message.positions[refused.index])
        if to_resume:
            step.rows, self.is_changing_stream = to_resume, True
            rows = [row for row in rows if row not in to_resume]
        if self.can_resume:
            self._journal.add(step, rows)

    def _refuse(self, step: BatchStep, error: CarouselError) -> None:
        """Fails all remaining rows of a step batch that the server refused as a whole."""
        if len(step.rows) == len(step.places):
            step.refusal = error
        for row in list(step.rows):
            step.fail(row, error, step.message.positions[row])

    def _opened(self, number: int, response: pb.StreamResponse) -> None:
        if response.HasField("opened"):
            member = self._openings[number]
            member.opened(response)
            self._by_id[member.id] = member
        self.answers[number] = response

    def _closed(self, number: int, response: pb.StreamResponse) -> None:
        member = self.closing[number]
        if response.HasField("error") and self._must_be_resumed(member, response.error):
            self.is_changing_stream = True
            return
        del self.closing[number]
        self._end(member, session_closed(member.id, CloseReason.CLIENT, response.position))

    def _noticed(self, member: Member, response: pb.StreamResponse) -> None:
        """Records a notice about a session: how far it is stored, or that it has ended or moved to another server."""
        try:
            member.recovery.received(response)
        except LostError:
            if self.can_resume:
                self.is_changing_stream = member.is_away = True
                return
        if response.HasField("closed") and member.ended_by is None:
            reason = _answers.close_reason(response.closed.reason)
            self._end(member, session_closed(member.id, reason, response.position))

    def _must_be_resumed(self, member: Member, error: error_pb2.Error) -> bool:
        """Whether the session only has to be resumed after this refusal, on another stream."""
        is_elsewhere = error.reason != "STORE_UNAVAILABLE" and member.recovery.may_succeed_later(error)
        return self.can_resume and (member.is_away or is_elsewhere)

    def _end(self, member: Member, error: CarouselError) -> None:
        """Ends a session. Gives it a handle that no server assigns: its old handle may be given to another session."""
        self._num_over += 1
        member.ended_by, member.handle = error, _NUM_HANDLES - self._num_over

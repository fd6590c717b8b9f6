"""The step batches of one stream: handles, and the last batch, kept so that a retry can be answered.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.api.replies import Replies
from service.engine.jobs import Item, Lane, OutputSpec
from service.engine.results import Stepped
from service.errors import (
    AnswerTooLargeError,
    CarouselError,
    InvalidFieldError,
    SessionNotOpenError,
    TokenOutOfVocabularyError,
)
from service.repository.bundle import Bundle
from service.sessions.checks import check_length, check_retries
from service.sessions.persistence import SessionLimits
from service.sessions.session import Failures, Request, Session
from service.sessions.spill import Spill
from service.sessions.step_batches import StepBatches, StepBatchRequest, lanes_of
from service.sessions.step_columns import StepBatch

_ERROR_BYTES = 256
"""About what one refused session takes in an answer."""
_BARE_ERROR_BYTES = 90
"""The most that it takes without a text."""
_TEXTS = 4
"""The most that an error has: its message, its field and two facts."""

Defer = Callable[[Request, pb.StreamRequest, list[Session]], None]


class _Sent:
    """A batch that was accepted. bundle: of its sessions, None when it names none that is there; accepted: None until
    the engine has it; retries: requests that came before its answer."""

    __slots__ = ("accepted", "bundle", "message", "retries")

    def __init__(self, message: pb.StepBatch, bundle: Bundle | None) -> None:
        self.message = message
        self.bundle = bundle
        self.accepted: StepBatchRequest | None = None
        self.retries: list[Request] = []


class _Found:
    """The sessions of a batch. refused: why some cannot take part; lanes: when all can; bundle: of the first session
    that is there; num_moves: `Spill.num_moves` as the lanes were looked up."""

    __slots__ = ("bundle", "handles", "lanes", "num_moves", "refused", "sessions", "there")

    def __init__(self, handles: list[int], sessions: list[Session | None], num_moves: int) -> None:
        self.handles = handles
        self.sessions = sessions
        self.there = [session for session in sessions if session is not None]
        self.num_moves = num_moves
        self.refused: dict[int, CarouselError] = {}
        self.lanes: list[Lane] | None = None
        self.bundle: Bundle | None = self.there[0].served.bundle if self.there else None


class StreamBatches:
    """Carries step batches out. defer(request, message, sessions): has one wait until its sessions have their
    slots."""

    def __init__(
        self, batches: StepBatches, spill: Spill, limits: SessionLimits, replies: Replies, defer: Defer
    ) -> None:
        self._batches = batches
        self._spill = spill
        self._limits = limits
        self._replies = replies
        self._defer = defer
        self._sessions: dict[int, Session] = {}
        self._last_handle = 0
        self._last: _Sent | None = None
        self._last_found: _Found | None = None

    def add(self, session: Session) -> None:
        """Gives a session a handle."""
        self._last_handle += 1
        session.handle = self._last_handle
        self._sessions[session.handle] = session

    def remove(self, session: Session) -> None:
        """Its handle is not used again."""
        self._sessions.pop(session.handle, None)
        self._last_found = None

    def step(self, request: Request, message: pb.StreamRequest, failures: Failures | None = None) -> None:
        """Carries a step batch out, or defers it. failures: when it was deferred, the sessions that it must do without.
        Raises InvalidFieldError and its kin, QueueFullError and AnswerTooLargeError."""
        batch = message.step_batch
        if message.session_id:
            raise InvalidFieldError("session_id must be empty: step_batch names its sessions", field="session_id")
        last = self._last
        if last is not None and batch.positions and batch == last.message and not self._waits(batch, failures):
            if self._answer_retry(request, last):
                return
            self._last = None  # its sessions were fed, set back or closed since
        found = self._find(batch)
        if failures is None and any(session.deferred is not None for session in found.there):
            self._defer(request, message, found.there)
            return
        refused = found.refused
        if failures:
            refused = refused | {
                place: failures[session]
                for place, session in enumerate(found.sessions)
                if session is not None and session in failures
            }
        tokens: Sequence[Item] = batch.token_ids
        outputs = OutputSpec()
        bundle = found.bundle
        if bundle is not None:
            tokens = convert.step_batch_items(batch, bundle, self._limits.max_feed_tokens)
            outputs = convert.default_outputs(bundle)
            if batch.HasField("outputs"):
                outputs = convert.output_spec(batch.outputs, bundle, field="step_batch.outputs")
        counts = list(batch.counts) or None
        vocabulary = None if bundle is None else bundle.step_vocabulary
        if vocabulary is not None and max(batch.token_ids, default=0) >= len(vocabulary):
            refused = {**refused, **_out_of_vocabulary(found, list(batch.token_ids), counts)}
        if len(refused) * _ERROR_BYTES > self._limits.max_answer_bytes:
            raise AnswerTooLargeError(
                f"step_batch.handles: {len(refused)} of {len(found.handles)} sessions cannot take part, too many to"
                f" report each: the first: {next(iter(refused.values())).message}",
                field="step_batch.handles",
            )
        sent = _Sent(batch, bundle)
        positions = list(batch.positions) or None
        asked = StepBatch(found.sessions, refused, tokens, counts, positions, outputs, None if refused else found.lanes)
        accepted = self._batches.step(asked, partial(self._on_stepped, request, sent), request.reserve)
        sent.accepted = accepted
        self._last = sent

    def _waits(self, batch: pb.StepBatch, failures: Failures | None) -> bool:
        """Whether earlier requests wait for a session of a retry that has just come: where the sessions will be is not
        known before those had their turn."""
        return failures is None and any(session.deferred for session in self._find(batch).there)

    def _find(self, batch: pb.StepBatch) -> _Found:
        """The sessions. Those of the last batch are kept: the next one is mostly of the same."""
        check_length(len(batch.handles), self._limits.max_feed_tokens, field="step_batch.handles")
        handles = list(batch.handles)
        found, num_moves = self._last_found, self._spill.num_moves
        if found is not None and found.handles == handles and found.num_moves == num_moves:
            return found
        if len(set(handles)) < len(handles):
            raise _doubled(handles)
        found = _Found(handles, [self._sessions.get(handle) for handle in handles], num_moves)
        if len(found.there) < len(handles):
            num_missing = len(handles) - len(found.there)
            if num_missing * _ERROR_BYTES > self._limits.max_answer_bytes:
                raise AnswerTooLargeError(
                    f"step_batch.handles: {num_missing} of {len(handles)} name no session that is open on this stream,"
                    " too many to report each",
                    field="step_batch.handles",
                )
            for at, session in enumerate(found.sessions):
                if session is None:
                    found.refused[at] = SessionNotOpenError(
                        f"step_batch.handles[{at}] = {handles[at]} names no session that is open on this stream",
                        field=f"step_batch.handles[{at}]",
                    )
        elif handles and not any(session.deferred is not None for session in found.there):
            found.lanes = lanes_of(found.there)
            self._last_found = found
        return found

    def _on_stepped(self, request: Request, sent: _Sent, accepted: StepBatchRequest, result: Stepped) -> None:
        self._reply(request, sent, result)
        retries, sent.retries = sent.retries, []
        for retry in retries:
            self._replay(retry, sent, accepted, result)

    def _answer_retry(self, request: Request, sent: _Sent) -> bool:
        """Answers a batch that was sent again, if its sessions are where it left them. Returns whether it did."""
        accepted = sent.accepted
        if accepted is None or accepted.result is None:
            check_retries(len(sent.retries), self._limits.max_in_flight)
            if accepted is not None:
                self._batches.replayed(accepted)
            sent.retries.append(request)
            return True
        if not accepted.is_current:
            return False
        self._batches.answer_again(accepted, partial(self._replay, request, sent))
        return True

    def _replay(self, request: Request, sent: _Sent, accepted: StepBatchRequest, result: Stepped) -> None:
        request.replayed = True
        self._reply(request, sent, result)

    def _reply(self, request: Request, sent: _Sent, result: Stepped) -> None:
        """Answers a batch. The more of its sessions failed, the shorter are the texts that say why."""
        each, bundle = self._limits.max_answer_bytes // max(1, len(result.errors)), sent.bundle
        self._replies.stepped(
            request,
            result,
            model="" if bundle is None else bundle.model,
            gives_values=bundle is not None and bundle.target_vocabulary is None,
            error_length=max(0, each - _BARE_ERROR_BYTES) // _TEXTS,
        )


def _doubled(handles: list[int]) -> InvalidFieldError:
    """The error for a handle that is given twice."""
    seen: set[int] = set()
    for at, handle in enumerate(handles):
        if handle in seen:
            return InvalidFieldError(
                f"step_batch.handles[{at}] = {handle} is there twice", field=f"step_batch.handles[{at}]"
            )
        seen.add(handle)
    raise ValueError("no handle is there twice")


def _out_of_vocabulary(found: _Found, tokens: list[int], counts: list[int] | None) -> dict[int, CarouselError]:
    """The refusals of sessions whose tokens their model lacks."""
    refused: dict[int, CarouselError] = {}
    ends = list(accumulate(counts or [1] * len(found.handles), initial=0))
    for at, session in enumerate(found.sessions[: len(ends) - 1]):
        if session is not None and session.served.bundle.step_vocabulary is not None:
            field = f"step_batch.token_ids of handles[{at}]"
            try:
                session.served.bundle.step_vocabulary.check_ids(tokens[ends[at] : ends[at + 1]], field=field)
            except TokenOutOfVocabularyError as error:
                refused[at] = error
    return refused

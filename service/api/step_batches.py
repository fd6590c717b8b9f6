"""The step batches of one stream: the handles of its sessions, and the last batch, which is kept to answer a retry.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from carousel.v1 import inference_pb2 as pb
from service.api import consumed, convert
from service.api.replies import Replies
from service.engine.jobs import Item, Lane, OutputSpec
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError, SessionNotOpenError
from service.repository.bundle import Bundle
from service.sessions.checks import check_batch, check_length, check_retries
from service.sessions.deferral import Failures
from service.sessions.kinds import default_outputs
from service.sessions.limits import SessionLimits
from service.sessions.persistence import AnswersByKey, UnstoredAnswer
from service.sessions.request import Request
from service.sessions.session import Session
from service.sessions.spill import Spill
from service.sessions.step_batches import StepBatches, StepBatchRequest, lanes_of
from service.sessions.step_columns import StepBatch
from service.sessions.unstored import NUMBER_BYTES

_BARE_ERROR_BYTES = 110
"""The most bytes that an error takes without its texts."""
_TEXTS = 5
"""The most texts that an error has: its message, its field, two facts and the id of the call."""

Act = Callable[[Failures], None]
Defer = Callable[[Request, pb.StreamRequest, list[Session], Act], None]


class _Sent:
    """A batch that was accepted. message: empty if the batch and its answer take too much memory and are not kept: a
    retry is then refused because of its positions; bundle: of its sessions, None if it names no session that exists;
    former: the last batch before this one, until it is known whether any session took part in this one; accepted: None
    until the engine has the batch; retries: requests that repeated the batch before it was answered."""

    __slots__ = ("__weakref__", "accepted", "bundle", "former", "message", "retries")

    def __init__(self, message: pb.StepBatch, bundle: Bundle | None, former: _Sent | None) -> None:
        self.message = message
        self.former = former
        self.bundle = bundle
        self.accepted: StepBatchRequest | None = None
        self.retries: list[Request] = []

    @property
    def num_bytes(self) -> int:
        """About the bytes that the batch and its answer take in memory."""
        result = None if self.accepted is None else self.accepted.result
        num_bytes = 3 * self.message.ByteSize()
        if result is not None:
            num_bytes += NUMBER_BYTES * (4 * len(result.positions) + 2 * len(result.token_ids))
            num_bytes += 0 if result.logits is None else result.logits.nbytes
        return num_bytes

    def drop(self) -> None:
        """Drops the batch and its answer: see `answer_memory.Droppable`."""
        self.message, self.accepted = pb.StepBatch(), None


class _Found:
    """The sessions of a batch. refused: the errors of the sessions that cannot take part, by place; lanes: set if all
    can; bundle: of the first session that exists; num_moves: `Spill.num_moves` when the lanes were looked up."""

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
    """Runs the step batches of one stream. defer(request, message, sessions, run): makes a request wait until its
    sessions have their slots, and then calls run(failures)."""

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
        self._unstored = AnswersByKey()
        """Batches that were applied but whose answers the store did not take: `_Sent`, by `_key`."""
        self._last_found: _Found | None = None

    def add(self, session: Session) -> None:
        """Gives a session its handle."""
        self._last_handle += 1
        session.handle = self._last_handle
        self._sessions[session.handle] = session

    def remove(self, session: Session) -> None:
        """Removes a session. Its handle is not used again."""
        self._sessions.pop(session.handle, None)
        self._last_found = None

    def step(self, request: Request, message: pb.StreamRequest) -> None:
        """Runs or defers a step batch. Raises InvalidFieldError or a subclass, QueueFullError and
        AnswerTooLargeError."""
        batch = message.step_batch
        if message.session_id:
            raise InvalidFieldError("session_id must be empty: step_batch names its sessions", field="session_id")
        last = self._repeated(batch)
        if last is not None and not any(session.deferred for session in self._find(batch).there):
            if self._answer_retry(request, last):
                return
            if last is self._last:
                self._last = None  # its sessions were fed, rewound or closed since
        found = self._find(batch)
        if any(session.deferred is not None for session in found.there):
            self._defer(request, message, found.there, partial(self._run, request, batch, found.there))
        else:
            self._step(request, batch, found, found.refused)

    def _run(self, request: Request, batch: pb.StepBatch, known: list[Session], failures: Failures) -> None:
        """Runs a step batch that was deferred.
        known: its sessions when it arrived; failures: the sessions that cannot take part, and why. A session that got
        its handle later is refused: the handle named no open session when the batch arrived."""
        last = self._repeated(batch)
        if last is not None:
            if self._answer_retry(request, last):
                return
            if last is self._last:
                self._last = None
        found = self._find(batch)
        there = set(known)
        refused = dict(found.refused)
        for place, session in enumerate(found.sessions):
            if session is None:
                continue
            if session in failures:
                refused[place] = failures[session]
            elif session not in there:
                refused[place] = _not_open(found.handles, place)
        self._step(request, batch, found, refused)

    def _step(self, request: Request, batch: pb.StepBatch, found: _Found, refused: dict[int, CarouselError]) -> None:
        tokens: Sequence[Item] = batch.token_ids
        outputs = OutputSpec()
        bundle = found.bundle
        if bundle is not None:
            tokens = consumed.step_batch_items(batch, bundle, self._limits.max_feed_tokens)
            outputs = default_outputs(bundle.manifest)._replace(every_position=False)
            if batch.HasField("outputs"):
                requested = convert.output_spec(batch.outputs, bundle, field="step_batch.outputs")
                outputs = requested._replace(every_position=batch.outputs.every_position)
        counts = list(batch.counts) or None
        if bundle is not None and _may_be_unfit(batch, bundle):
            refused = {**refused, **_unfit(found, bundle, tokens, counts)}
        sent = _Sent(batch, bundle, self._last)
        positions = list(batch.positions) or None
        asked = StepBatch(found.sessions, refused, tokens, counts, positions, outputs, None if refused else found.lanes)
        accepted = self._batches.step(asked, partial(self._on_stepped, request, sent), request.reserve)
        if batch is sent.message:  # false if it was answered at once and dropped
            sent.accepted = accepted
        if not accepted.is_refused:
            self._last = sent if batch.positions else None

    def _repeated(self, batch: pb.StepBatch) -> _Sent | None:
        """Returns the batch that this one repeats: the last one, or one whose answer the store did not take."""
        last = self._last
        if not batch.positions or (last is not None and batch == last.message):
            return last if batch.positions else None
        for kept in self._unstored.get(_key(batch), ()) if self._unstored else ():
            if isinstance(kept.answered, _Sent) and batch == kept.answered.message:
                return kept.answered
        return None

    def _find(self, batch: pb.StepBatch) -> _Found:
        """Returns the sessions of a batch. Reuses the last lookup if the handles are the same, as they mostly are."""
        check_length(len(batch.handles), self._limits.max_feed_tokens, field="step_batch.handles", noun="handle")
        check_batch(len(batch.handles), max_answer_bytes=self._limits.max_answer_bytes, field="step_batch.handles")
        handles = list(batch.handles)
        found, num_moves = self._last_found, self._spill.num_moves
        if found is not None and found.handles == handles and found.num_moves == num_moves:
            return found
        if len(set(handles)) < len(handles):
            raise _doubled(handles)
        found = _Found(handles, [self._sessions.get(handle) for handle in handles], num_moves)
        if len(found.there) < len(handles):
            for at, session in enumerate(found.sessions):
                if session is None:
                    found.refused[at] = _not_open(handles, at)
        elif handles and not any(session.deferred is not None for session in found.there):
            found.lanes = lanes_of(found.there)
            self._last_found = found
        return found

    def _on_stepped(self, request: Request, sent: _Sent, accepted: StepBatchRequest, result: Stepped) -> None:
        former, sent.former = sent.former, None
        if accepted.is_refused:
            self._forget(sent, former)
            if former is not None and former.message == sent.message and self._answer_retry(request, former):
                return  # the refused batch had taken the place of `former`
        self._reply(request, sent, result)
        self._keep(sent, accepted, result)
        retries, sent.retries = sent.retries, []
        for retry in retries:
            self._replay(retry, sent, accepted, result)
        sent.accepted = accepted  # an inline answer comes before `step` returns
        if sent.message.positions:
            self._batches.replays.keep(sent, sent.num_bytes)

    def _forget(self, sent: _Sent, former: _Sent | None) -> None:
        """Removes a refused batch, which has changed nothing: the last batch before it becomes the last one again."""
        newer = self._last
        while newer is not None and newer is not sent and newer.former is not sent:
            newer = newer.former
        if newer is sent:
            self._last = former
        elif newer is not None:
            newer.former = former

    def _answer_retry(self, request: Request, sent: _Sent) -> bool:
        """Answers a batch that was sent again, if its sessions are where it left them. Returns whether it did. While
        the batch runs, the retry waits for its result. Raises QueueFullError."""
        accepted = sent.accepted
        if accepted is None or accepted.result is None:
            check_retries(len(sent.retries), self._limits.max_in_flight)
            if accepted is not None:
                self._batches.replayed(accepted)
            sent.retries.append(request)
            return True
        kept = self._unstored.get(_key(sent.message), ()) if self._unstored else ()
        if not (accepted.is_current or (accepted.is_done and any(one.answered is sent for one in kept))):
            return False
        self._batches.answer_again(accepted, partial(self._replay, request, sent))
        return True

    def _replay(self, request: Request, sent: _Sent, accepted: StepBatchRequest, result: Stepped) -> None:
        request.replayed = True
        self._reply(request, sent, result)
        self._keep(sent, accepted, result)

    def _reply(self, request: Request, sent: _Sent, result: Stepped) -> None:
        """Answers a batch. The more of its sessions failed, the shorter is the text of each error."""
        each, bundle = self._limits.max_answer_bytes // max(1, len(result.errors)), sent.bundle
        self._replies.stepped(
            request,
            result,
            model="" if bundle is None else bundle.model,
            numbers="logits" if bundle is None else convert.numbers_of(bundle),
            error_length=max(0, each - _BARE_ERROR_BYTES) // _TEXTS,
        )

    def _keep(self, sent: _Sent, accepted: StepBatchRequest, result: Stepped) -> None:
        """Keeps an applied batch if the store did not take its answer: the errors then differ from the engine's."""
        done = accepted.result
        if done is not None and sent.message.positions and result.errors != done.errors:
            sent.accepted = accepted
            self._batches.unstored.keep(UnstoredAnswer(self._unstored, _key(sent.message), sent), sent.num_bytes)


def _key(batch: pb.StepBatch) -> int:
    """Returns a hash of a batch. Two different batches hardly ever have the same."""
    return hash(batch.SerializeToString(deterministic=True))


def _not_open(handles: list[int], at: int) -> SessionNotOpenError:
    return SessionNotOpenError(
        f"step_batch.handles[{at}] = {handles[at]} is not a session that is open on this stream",
        field=f"step_batch.handles[{at}]",
    )


def _doubled(handles: list[int]) -> InvalidFieldError:
    """Returns the error for a handle that is given twice."""
    seen: set[int] = set()
    for at, handle in enumerate(handles):
        if handle in seen:
            return InvalidFieldError(
                f"step_batch.handles[{at}] = {handle} is a duplicate", field=f"step_batch.handles[{at}]"
            )
        seen.add(handle)
    raise ValueError("no handle is a duplicate")


def _may_be_unfit(batch: pb.StepBatch, bundle: Bundle) -> bool:
    vocabulary = bundle.step_vocabulary
    if vocabulary is None:
        return bool(bundle.manifest.step.whole_numbers)
    return max(batch.token_ids, default=0) >= len(vocabulary)


def _unfit(found: _Found, bundle: Bundle, items: Sequence[Item], counts: list[int] | None) -> dict[int, CarouselError]:
    """Returns the errors of the bundle's sessions whose token ids are not in its vocabulary, or whose vectors have
    fractions for its integer inputs, by place."""
    refused: dict[int, CarouselError] = {}
    ends = list(accumulate(counts or [1] * len(found.handles), initial=0))
    for at, session in enumerate(found.sessions[: len(ends) - 1]):
        if session is not None and session.served.bundle is bundle:
            try:
                consumed.check_items(items[ends[at] : ends[at + 1]], bundle, first=ends[at])
            except InvalidFieldError as error:
                refused[at] = error
    return refused

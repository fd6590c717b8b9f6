"""The frames of one stream: handles, and the last frame, kept so that it can be answered again.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.api.parking import AsleepError
from service.engine.items import Item
from service.engine.jobs import Lane, OutputSpec
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError, SessionNotOpenError, TokenOutOfVocabularyError
from service.repository.bundle import Bundle
from service.sessions.frames import Frame, FrameRequest, Frames, lanes_of
from service.sessions.session import Session

Answer = Callable[[pb.StreamResponse], None]


class _Sent:
    """A frame that was taken in. gives_values: whether its answer is values; answer: None until it is known; repeats:
    requests that sent it again before."""

    __slots__ = ("answer", "gives_values", "message", "repeats")

    def __init__(self, message: pb.StepBatch, *, gives_values: bool) -> None:
        self.message = message
        self.gives_values = gives_values
        self.answer: pb.BatchStepped | None = None
        self.repeats: list[int] = []


class _Found:
    """The sessions of a frame. refused: why some are not there; lanes: when all are; bundle: of the first
    that is."""

    __slots__ = ("bundle", "handles", "lanes", "refused", "sessions")

    def __init__(self, handles: list[int], sessions: list[Session | None]) -> None:
        self.handles = handles
        self.sessions = sessions
        self.refused: dict[int, CarouselError] = {}
        self.lanes: list[Lane] | None = None
        self.bundle: Bundle | None = None


class StreamFrames:
    """Takes frames in. answer: is called once for each that was not refused as a whole."""

    def __init__(self, frames: Frames, answer: Answer) -> None:
        self._frames = frames
        self._answer = answer
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

    def step(self, request: pb.StreamRequest) -> None:
        """Takes a frame in. Raises InvalidFieldError and its kin, and QueueFullError."""
        message = request.step_batch
        if request.session_id:
            raise InvalidFieldError("session_id must be empty: step_batch names its sessions", field="session_id")
        last = self._last
        if last is not None and message.positions and message == last.message:
            self._repeat(request.request_id, last)
            return
        handles = list(message.handles)
        found = self._last_found
        if found is None or found.handles != handles:
            found = self._find(handles)
        asleep = [
            one for one in found.sessions if one is not None and one.custody is not None and one.custody.is_asleep
        ]
        if asleep:
            raise AsleepError(asleep)
        bundle = found.bundle
        tokens: Sequence[Item] = list(message.token_ids)
        outputs = OutputSpec()
        if bundle is not None:
            tokens = convert.frame_items(message, bundle)
            outputs = convert.default_outputs(bundle)
            if message.HasField("outputs"):
                outputs = convert.output_spec(message.outputs, bundle, field="step_batch.outputs")
        counts = list(message.counts) or None
        sent = self._last = _Sent(message, gives_values=bundle is not None and bundle.target_vocabulary is None)
        refused = found.refused
        vocabulary = None if bundle is None else bundle.step_vocabulary
        if vocabulary is not None and max(message.token_ids, default=0) >= len(vocabulary):
            refused = {**refused, **_out_of_vocabulary(found, list(message.token_ids), counts)}
        positions = list(message.positions) or None
        frame = Frame(found.sessions, refused, tokens, counts, positions, outputs, found.lanes)
        try:
            self._frames.step(frame, request_id=request.request_id, reply=partial(self._on_stepped, sent))
        except CarouselError:
            self._last = last
            raise

    def _find(self, handles: list[int]) -> _Found:
        """The sessions. What was found for the last frame is kept: the next one is mostly of the same."""
        if len(set(handles)) < len(handles):
            at = next(at for at, handle in enumerate(handles) if handle in handles[:at])
            raise InvalidFieldError(
                f"step_batch.handles[{at}] = {handles[at]} is there twice", field=f"step_batch.handles[{at}]"
            )
        sessions = [self._sessions.get(handle) for handle in handles]
        found = _Found(handles, sessions)
        for at, session in enumerate(sessions):
            if session is None:
                found.refused[at] = SessionNotOpenError(
                    f"step_batch.handles[{at}] = {handles[at]} names no session that is open on this stream",
                    field=f"step_batch.handles[{at}]",
                )
        open_ones = [session for session in sessions if session is not None]
        if open_ones:
            found.bundle = open_ones[0].served.bundle
        if handles and not found.refused:
            found.lanes = lanes_of(open_ones)
            self._last_found = found
        return found

    def _on_stepped(self, sent: _Sent, request: FrameRequest, result: Stepped) -> None:
        answer = sent.answer = answers.stepped(result, gives_values=sent.gives_values)
        self._answer(pb.StreamResponse(request_id=request.request_id, batch_stepped=answer))
        for request_id in sent.repeats:
            self._repeat(request_id, sent)

    def _repeat(self, request_id: int, sent: _Sent) -> None:
        """A frame was sent again."""
        if sent.answer is None:
            sent.repeats.append(request_id)
            return
        response = pb.StreamResponse(request_id=request_id, batch_stepped=sent.answer)
        response.batch_stepped.replayed = True
        self._answer(response)


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

"""The frames of one stream: handles, and the last frame, kept so that it can be answered again.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError, SessionNotOpenError, TokenOutOfVocabularyError
from service.sessions.frames import FrameRequest, Frames
from service.sessions.session import Session

Answer = Callable[[pb.StreamResponse], None]


class _Frame:
    """A frame that was taken in. answer: None until it is known; repeats: requests that sent it again before."""

    __slots__ = ("answer", "message", "repeats")

    def __init__(self, message: pb.StepBatch) -> None:
        self.message = message
        self.answer: pb.BatchStepped | None = None
        self.repeats: list[int] = []


class StreamFrames:
    """Takes frames in. answer: is called once for each that was not refused as a whole."""

    def __init__(self, frames: Frames, answer: Answer) -> None:
        self._frames = frames
        self._answer = answer
        self._sessions: dict[int, Session] = {}
        self._last_handle = 0
        self._last: _Frame | None = None

    def add(self, session: Session) -> None:
        """Gives a session a handle."""
        self._last_handle += 1
        session.handle = self._last_handle
        self._sessions[session.handle] = session

    def remove(self, session: Session) -> None:
        """Its handle is not used again."""
        self._sessions.pop(session.handle, None)

    def step(self, request: pb.StreamRequest) -> None:
        """Takes a frame in. Raises InvalidFieldError and its kin, and QueueFullError."""
        message = request.step_batch
        if request.session_id:
            raise InvalidFieldError("session_id must be empty: step_batch names its sessions", field="session_id")
        last = self._last
        if last is not None and message.positions and message == last.message:
            self._repeat(request.request_id, last)
            return
        outputs = convert.DEFAULT_OUTPUTS
        if message.HasField("outputs"):
            outputs = convert.output_spec(message.outputs, field="step_batch.outputs")
        handles = list(message.handles)
        if len(set(handles)) < len(handles):
            at = next(at for at, handle in enumerate(handles) if handle in handles[:at])
            raise InvalidFieldError(
                f"step_batch.handles[{at}] = {handles[at]} is there twice", field=f"step_batch.handles[{at}]"
            )
        tokens = list(message.token_ids)
        counts = list(message.counts) or None
        frame = self._last = _Frame(message)
        try:
            self._frames.step(
                self._found(handles, tokens, counts),
                tokens,
                counts,
                list(message.positions) or None,
                outputs,
                request_id=request.request_id,
                reply=partial(self._on_stepped, frame),
            )
        except CarouselError:
            self._last = last
            raise

    def _found(self, handles: list[int], tokens: list[int], counts: list[int] | None) -> list[Session | CarouselError]:
        """The sessions, or why there is none: an unknown handle, or a token that its model lacks."""
        known = self._sessions
        try:
            found: list[Session | CarouselError] = [known[handle] for handle in handles]
        except KeyError:
            found = [known.get(handle) or _unknown(at, handle) for at, handle in enumerate(handles)]
        sessions = [session for session in found if isinstance(session, Session)]
        if sessions and tokens and max(tokens) >= len(sessions[0].served.bundle.target_vocabulary):
            begin = 0
            for at, session in enumerate(found):
                end = begin + (1 if counts is None or at >= len(counts) else counts[at])
                if isinstance(session, Session):
                    vocabulary = session.served.bundle.target_vocabulary
                    try:
                        vocabulary.check_ids(tokens[begin:end], field=f"step_batch.token_ids of handles[{at}]")
                    except TokenOutOfVocabularyError as error:
                        found[at] = error
                begin = end
        return found

    def _on_stepped(self, frame: _Frame, request: FrameRequest, result: Stepped) -> None:
        answer = frame.answer = answers.stepped(result)
        self._answer(pb.StreamResponse(request_id=request.request_id, batch_stepped=answer))
        for request_id in frame.repeats:
            self._repeat(request_id, frame)

    def _repeat(self, request_id: int, frame: _Frame) -> None:
        """A frame was sent again."""
        if frame.answer is None:
            frame.repeats.append(request_id)
            return
        response = pb.StreamResponse(request_id=request_id, batch_stepped=frame.answer)
        response.batch_stepped.replayed = True
        self._answer(response)


def _unknown(at: int, handle: int) -> CarouselError:
    return SessionNotOpenError(
        f"step_batch.handles[{at}] = {handle} names no session that is open on this stream",
        field=f"step_batch.handles[{at}]",
    )

"""Keeps what a client needs to resume its session after a lost connection. Pure: no I/O, no clock, no threads.

Rules:

1. A request without its last answer is pending. It is sent again on the next stream; the server applies it once. A
   generation then also says up to which position the client has its tokens.
2. The client keeps the tokens that the session consumed since its last checkpoint, and the marks. When the server
   restores the session at an earlier position, the client replays them. When the session was never stored, the client
   opens it again with the same version and variant, and replays everything.
3. Tokens that arrive a second time are dropped by their position: see `GenerationState`.
4. Nothing is replayed to a session that another caller moved: this client's history is not the session's. The pending
   requests fail with POSITION_MISMATCH instead.
5. A request that the server's gRPC refuses for its size fails at once. When two connections in a row end with the same
   refusal, and no request made progress, the oldest pending request fails. The session continues without it.
6. A generation that is cancelled while the connection is lost first catches up with the tokens that the client has
   received. So the session's position is never behind tokens that the program has seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import grpc

from carousel import _answers, _arguments
from carousel._exchange import Exchange, LostError
from carousel._history import Consumed, History, consumed_by
from carousel._refusals import Refusals
from carousel._resume import Number, behind_checkpoint, find, history_lost, is_transient, replay
from carousel._tensors import pieces
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb


class Recovery:
    """What one session needs to be resumed.

    backlog: responses that the session's next exchange gets before any from the stream.
    """

    def __init__(self, opening: pb.Open | None, timeout_s: float) -> None:
        """opening: None for a session that another program opened. timeout_s: the most that one recovery may take."""
        self.timeout_s = _arguments.seconds(timeout_s, "resume_timeout")
        self.backlog: deque[pb.StreamResponse] = deque()
        self._opening = opening
        self._history = History()
        self._pending: dict[int, pb.StreamRequest] = {}
        self._session_id = ""
        self._is_open = False
        self._has_durability = False
        self._is_kept_in_store = opening is not None and opening.on_disconnect.action == pb.DISCONNECT_ACTION_KEEP
        self._had_go_away = False
        self._checkpoint: int | None = None
        self._rewinding: int | None = None
        self._moved_to: int | None = None  # its position after a move that no feed explains; None once it is stored
        self._refusals = Refusals()

    @property
    def is_open(self) -> bool:
        """Whether there is a session to resume."""
        return self._is_open

    @property
    def pending(self) -> list[pb.StreamRequest]:
        """The requests that have no last answer yet, in the order in which they were sent."""
        return list(self._pending.values())

    @property
    def max_request_bytes(self) -> int:
        """The largest request that the server is known to accept."""
        return self._refusals.max_request_bytes

    @property
    def end(self) -> int:
        """The position up to which the client knows what the session consumed."""
        return self._history.end

    @property
    def num_kept(self) -> int:
        """How many tokens are kept for replay."""
        return self._history.end - self._history.start

    def sent(self, request: pb.StreamRequest) -> None:
        """Records a request as pending."""
        self._pending[request.request_id] = request

    def set_pending_feeds(self, feeds: list[pb.StreamRequest]) -> None:
        """Replaces the pending requests by the feeds of step batches in flight that follow each other without a gap."""
        self._pending, end = {}, self._history.end
        for request in feeds:
            if request.feed.position == end:
                self._pending[request.request_id] = request
                end += len(consumed_by(request.feed))

    def consumed(self, position: int, tokens: Consumed) -> None:
        """Records tokens that the session consumed from `position` on by step batches."""
        self._history.write(position, tokens)

    def stored(self, position: int) -> None:
        """Records that the session is stored up to `position`."""
        self._checkpoint, self._moved_to = position, None
        self._history.forget(position)

    def received(self, response: pb.StreamResponse) -> bool:
        """Records a response. Returns whether a request made progress.

        Raises LostError when the session must be resumed on another stream, and CarouselError when the server
        generates other tokens than it did before.
        """
        kind = response.WhichOneof("response")
        request = self._pending.get(response.request_id)
        if kind == "go_away":
            self._had_go_away = True
            if self.outlives_server:
                raise LostError(UnavailableError("the server is shutting down", reason="GO_AWAY"))
            return False  # the session ends with its server, so the client uses it as long as it lasts
        if kind == "error" and request is not None and self._is_open and self.may_succeed_later(response.error):
            raise LostError(_answers.error(response.error))
        if kind == "closed" and self._is_resumable_after_close(response):
            raise LostError(UnavailableError("the session is in the store, or another server has it"))
        has_progress = request is not None
        if request is not None and kind == "generated":
            has_progress = self._generated(response)
        if request is not None and (kind != "generated" or response.generated.finish_reason):
            self._answered(kind or "", request, response)
        self._learn(response)
        if has_progress:
            self._refusals.reset()
            if request is not None and not request.HasField("cancel"):
                self._rewinding = None
        return has_progress

    def stream_ended(self, error: CarouselError) -> None:
        """Records how the stream ended. If a pending request is at fault, puts its error into the backlog."""
        at_fault = self._refusals.at_fault(error, self.pending)
        if at_fault is not None:
            self._fail(at_fault, _answers.error_message(error))

    def resume(self, number: Number, position: int) -> Exchange[list[pb.StreamRequest]]:
        """Resumes the session on a new stream. Returns the pending requests, which must be sent after it.

        position: the session's position, as the program knows it. Raises the error with which the server refuses the
        resume, and CarouselError with code DATA_LOSS when the client does not have the tokens to replay.
        """
        self._had_go_away = False
        has_all = self._has_durability and self._checkpoint is None and not self._history.start
        response = yield from find(number, self._opening if has_all else None)
        self._learn(response)
        restored = response.position
        if restored == self._rewinding:  # rewound, or restored from a checkpoint at the mark: the state is the same
            self._history.truncate(restored)
            self._checkpoint = None if self._checkpoint is None else min(self._checkpoint, restored)
        if self._checkpoint is not None and restored < self._checkpoint:
            self._moved_behind_checkpoint(restored)
            return self.pending
        if self._moved_to is not None and response.opened.restored_from == pb.RESTORED_FROM_STORE:
            self._check_moved(restored)
        target = self._first_position(position)
        if restored < target:
            for feed in self._kept(restored, target):
                self._learn((yield from replay(number, feed)))
        generate = next((request for request in self.pending if request.HasField("generate")), None)
        if generate is None:
            self._history.truncate(max(restored, target))
            return self.pending
        start = generate.generate.position
        generate.generate.received_position = max(start, min(self._history.end, restored))
        if any(request.HasField("cancel") for request in self.pending) and restored < self._history.end:
            yield from self._catch_up(generate)
            return [request for request in self.pending if request is not generate]
        return self.pending

    def opened(self, response: pb.StreamResponse) -> None:
        """Records that the session is open, new or resumed."""
        opened = response.opened
        self._is_open = True
        self._session_id = response.session_id
        self._has_durability = opened.durability in (pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT)
        self._history = History(response.position, keeps_tokens=self._has_durability)
        if self._opening is not None:
            opening = pb.Open()
            opening.CopyFrom(self._opening)
            opening.version, opening.variant = opened.version, opened.variant or opening.variant
            self._opening = opening

    def rewinding(self, position: int | None) -> None:
        """Records that this client asks the server to rewind the session; None: the server has answered.

        Until the server answers, a resume may find the session at either position.
        """
        self._rewinding = position

    def rewound(self, position: int) -> None:
        """Records that this client rewound the session, and that the server has stored the rewound state."""
        self._history.truncate(position)
        self._moved_to = self._rewinding = None
        if self._has_durability:
            self._checkpoint = position

    @property
    def outlives_server(self) -> bool:
        """Whether the session can be resumed after its server has ended."""
        return self._is_open and (self._has_durability or self._is_kept_in_store)

    def may_succeed_later(self, error: error_pb2.Error) -> bool:
        """Whether the request may succeed later: on another stream that finds the session, or in another attempt."""
        if is_transient(error):
            return self.outlives_server or error.reason != "SHUTTING_DOWN"
        return (
            self.outlives_server
            and self._had_go_away  # servers of version 0.1 answer with CANCELLED when they shut down
            and error.code == grpc.StatusCode.CANCELLED.value[0]
            and not any(request.HasField("cancel") for request in self._pending.values())
        )

    def _is_resumable_after_close(self, response: pb.StreamResponse) -> bool:
        reason = response.closed.reason
        return (
            reason == pb.CLOSE_REASON_MOVED
            or (self._is_kept_in_store and reason == pb.CLOSE_REASON_IDLE)
            or (self.outlives_server and not response.request_id and reason == pb.CLOSE_REASON_SHUTDOWN)
        )

    def _generated(self, response: pb.StreamResponse) -> bool:
        """Records generated tokens. Returns whether some were new, or the generation has ended."""
        tokens: Consumed = [token.id for token in response.generated.tokens]
        if response.generated.HasField("values"):
            tokens = pieces(response.generated.values)
        end = self._history.end
        self._history.extend(response.position - len(tokens), tokens)
        return self._history.end > end or bool(response.generated.finish_reason)

    def _answered(self, kind: str, request: pb.StreamRequest, response: pb.StreamResponse) -> None:
        """Records the last answer to a request."""
        del self._pending[request.request_id]
        position = response.position
        is_cancelled = kind == "cancelled" or response.error.code == grpc.StatusCode.CANCELLED.value[0]
        if request.HasField("feed") and (kind == "fed" or is_cancelled):
            tokens, start = consumed_by(request.feed), request.feed.position
            if kind == "fed":
                self._history.write(start, tokens, mark=request.feed.mark)
            elif start < position <= start + len(tokens):  # the feed was cancelled after some of its tokens
                self._history.write(start, tokens[: position - start])
        elif response.error.reason == "POSITION_MISMATCH" and response.error.metadata.get("position", "").isdecimal():
            self.stands_at(int(response.error.metadata["position"]))
        elif is_cancelled:
            self.stands_at(position)

    def stands_at(self, position: int) -> None:
        """Records the session's position. If no request of this client leads to it, another caller moved the
        session."""
        ends = (one.feed.position + len(consumed_by(one.feed)) for one in self.pending if one.HasField("feed"))
        if position == self._history.end or position in ends:
            return
        if position == self._rewinding:
            self._history.truncate(position)
        else:
            self._history.restart(position)
        self._moved_to = position

    def _learn(self, response: pb.StreamResponse) -> None:
        if response.HasField("checkpoint_position"):
            self.stored(response.checkpoint_position)

    def _fail(self, request: pb.StreamRequest, error: error_pb2.Error) -> None:
        self._pending.pop(request.request_id)
        self.backlog.append(
            pb.StreamResponse(
                request_id=request.request_id,
                session_id=self._session_id,
                position=self._history.end,
                error=error,
            )
        )

    def _kept(self, begin: int, end: int) -> Iterator[pb.Feed]:
        try:
            return self._history.between(begin, end)
        except LookupError as error:
            raise history_lost(
                f"the session was restored at position {begin}, and the client cannot replay it to {end}: {error}."
            ) from error

    def _catch_up(self, generate: pb.StreamRequest) -> Exchange[None]:
        """Lets a cancelled generation reach the tokens that the client has received. See rule 6."""
        end = self._history.end
        request: pb.StreamRequest | None = generate
        while generate.request_id in self._pending:
            response = yield request
            request = None
            self.received(response)
            self.backlog.append(response)
            if response.request_id == generate.request_id and response.position >= end:
                return

    def _moved_behind_checkpoint(self, position: int) -> None:
        """Fails the pending requests: another caller rewound the session, or the store lost its checkpoint."""
        error = behind_checkpoint(position, self._checkpoint)
        self._history.restart(position)
        self._checkpoint = position
        for request in self.pending:
            if not request.HasField("close"):
                self._fail(request, error)

    def _check_moved(self, restored: int) -> None:
        if restored != self._moved_to:
            moved = f"another caller moved the session to position {self._moved_to}"
            raise history_lost(f"{moved}, but it was restored at {restored}: what it consumed is not known.")

    def _first_position(self, position: int) -> int:
        """The position that the session must have for the first pending request."""
        for request in self.pending:
            kind = request.WhichOneof("request")
            if kind in ("feed", "generate", "score"):
                return int(getattr(request, kind).position)
            if kind == "cancel":
                return self._history.end
        return position

"""A server of sessions in memory. A random source decides when it crashes and cuts streams. It has no threads and no
clock.

Its model chooses a token that depends on all tokens before it, so one wrongly fed token changes all later ones.
Responses are computed when the client reads them, so a generation is in flight until its end is read.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from random import Random

import grpc

from carousel import CarouselError, FailedPreconditionError, NotFoundError, UnavailableError
from carousel._deadline import Deadline
from carousel._protocol import SessionProtocol
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb


def chosen(consumed: list[int]) -> int:
    """Returns the token that the model chooses after a sequence."""
    return 100 + sum(at * token for at, token in enumerate(consumed, 1)) % 97


@dataclass
class ModelSession:
    """The state of a session in the server's memory or in its store."""

    consumed: list[int] = field(default_factory=list)
    marks: dict[int, list[int]] = field(default_factory=dict)
    last_feed: pb.Feed | None = None
    start: int | None = None  # the position at which the last generation began
    limit: int = 0
    is_generating: bool = False

    @property
    def position(self) -> int:
        return len(self.consumed)

    @property
    def num_produced(self) -> int:
        assert self.start is not None
        return self.position - self.start


class ModelServer:
    """Serves sessions to `ModelStream`. num_faults: how many more times it may crash or cut its streams by itself."""

    def __init__(self, random: Random, num_faults: int = 0) -> None:
        self.random = random
        self.num_faults = num_faults
        self.versions: list[int] = []
        self.streams: dict[str, ModelStream] = {}
        self._live: dict[str, ModelSession] = {}
        self._stored: dict[str, ModelSession] = {}
        self.checkpoints: dict[str, int] = {}  # the positions of checkpoints that no response has reported yet

    def __getitem__(self, session_id: str) -> ModelSession:
        return self._live[session_id]

    def is_live(self, session_id: str) -> bool:
        """Returns whether a session is in memory."""
        return session_id in self._live

    def crash(self) -> None:
        """Loses its memory and all streams. Stored sessions stay."""
        self._live.clear()
        self.checkpoints.clear()
        self.cut()

    def cut(self) -> None:
        """Loses all streams. Sessions stay in memory, and their generations stop."""
        for stream in self.streams.values():
            stream.is_cut = True
            stream.outbox.clear()
        self.streams.clear()
        for session in self._live.values():
            session.is_generating = False

    def store(self, session_id: str) -> None:
        """Writes a checkpoint of a session. The session's next response reports it."""
        session = self._live.get(session_id)
        if session is not None:
            self._stored[session_id] = copy.deepcopy(session)
            self._stored[session_id].is_generating = False
            self.checkpoints[session_id] = session.position

    def fork(self, session_id: str, name: str) -> None:
        """Copies a session and stores the copy."""
        self._live[name] = copy.deepcopy(self._live[session_id])
        self._live[name].is_generating = False
        self._live[name].last_feed = self._live[name].start = None
        self.store(name)
        self.checkpoints.pop(name)

    def rewind(self, session_id: str, position: int) -> None:
        """Rewinds a session to a mark and stores it. Raises what the client's call would raise."""
        if self.breaks():
            raise UnavailableError("lost before the call")
        session = self.find(session_id)
        if session is None:
            raise NotFoundError("no such session")
        if session.is_generating or position not in session.marks:
            raise FailedPreconditionError(f"generating, or no mark at {position}: {list(session.marks)}")
        session.consumed = list(session.marks[position])
        session.marks = {at: state for at, state in session.marks.items() if at <= position}
        session.last_feed = session.start = None
        self.store(session_id)
        if self.breaks():
            raise UnavailableError("lost after the call")

    def breaks(self) -> bool:
        """Returns whether the server crashes or cuts its streams now."""
        if self.num_faults and self.random.random() < 0.15:
            self.num_faults -= 1
            (self.crash if self.random.random() < 0.6 else self.cut)()
            return True
        return False

    def find(self, session_id: str) -> ModelSession | None:
        """Returns a session from memory, or restores it from the store. None if neither has it."""
        if session_id not in self._live and session_id in self._stored:
            self._live[session_id] = copy.deepcopy(self._stored[session_id])
        return self._live.get(session_id)

    def open(self, session_id: str) -> ModelSession:
        """Returns a new session."""
        assert session_id not in self._live
        self._live[session_id] = ModelSession()
        return self._live[session_id]


class ModelStream:
    """A stream in memory, with the interface of `carousel._stream.Stream`."""

    def __init__(self, server: ModelServer, owner: SessionProtocol) -> None:
        self.outbox: deque[pb.StreamResponse] = deque()
        self.is_cut = False
        self._server = server
        self._id = owner.id
        self._generate_id = 0
        server.streams[owner.id] = self

    def post(self, request: pb.StreamRequest) -> None:
        if not self.is_cut:
            self._handle(pb.StreamRequest.FromString(request.SerializeToString()))

    def end(self, deadline: Deadline) -> None:
        self.is_cut = True

    def receive(self, deadline: Deadline) -> pb.StreamResponse | CarouselError:
        server = self._server
        if self.is_cut or server.breaks():
            return UnavailableError("the stream was lost")
        if server.random.random() < 0.2:
            server.store(self._id)
        if not self.outbox:
            self._generate()
        response = self.outbox.popleft()
        if self._id in server.checkpoints:
            response.checkpoint_position = server.checkpoints.pop(self._id)
        return response

    def _handle(self, request: pb.StreamRequest) -> None:
        kind = request.WhichOneof("request")
        if kind == "open":
            self._open(request)
            return
        session = self._server[self._id]
        position = session.position
        if kind == "feed":
            self._feed(request.request_id, session, request.feed)
        elif kind == "generate":
            self._start(request.request_id, session, request.generate)
        elif kind == "cancel":
            for _ in range(self._server.random.randrange(3)):
                self._generate()
            if session.is_generating:
                session.is_generating = False
                self._refuse(self._generate_id, grpc.StatusCode.CANCELLED, "cancelled", "CANCELLED", session.position)
            self._put(request.request_id, session.position, cancelled=pb.Cancelled())
        else:
            assert kind == "close"
            self._put(request.request_id, position, closed=pb.Closed(reason=pb.CLOSE_REASON_CLIENT))

    def _open(self, request: pb.StreamRequest) -> None:
        server, message = self._server, request.open
        was_live = server.is_live(self._id)
        if not message.HasField("resume"):
            server.versions.append(message.version)
            session = server.open(self._id)
            restored_from = pb.RESTORED_FROM_UNSPECIFIED
        else:
            found = server.find(self._id)
            if found is None:
                self._refuse(request.request_id, grpc.StatusCode.NOT_FOUND, "gone", "SESSION_NOT_FOUND", 0)
                return
            session = found
            restored_from = pb.RESTORED_FROM_MEMORY if was_live else pb.RESTORED_FROM_STORE
        opened = pb.Opened(
            model="toy", version=7, durability=pb.DURABILITY_CHECKPOINT, restored_from=restored_from, variant="fp32"
        )
        self._put(request.request_id, session.position, opened=opened)

    def _feed(self, request_id: int, session: ModelSession, feed: pb.Feed) -> None:
        if session.last_feed == feed:
            self._put(request_id, session.position, fed=pb.Fed(replayed=True))
            return
        assert not session.is_generating
        if feed.position != session.position:
            self._mismatch(request_id, session)
            return
        session.consumed += feed.token_ids
        session.last_feed, session.start = feed, None
        if feed.mark:
            session.marks[session.position] = list(session.consumed)
        self._put(request_id, session.position, fed=pb.Fed())

    def _start(self, request_id: int, session: ModelSession, generate: pb.Generate) -> None:
        start, limit = generate.position, generate.decoding.max_tokens
        is_repeated = session.start == start and session.limit == limit
        if not is_repeated and start != session.position:
            self._mismatch(request_id, session)
            return
        session.last_feed = None
        session.start, session.limit, session.is_generating = start, limit, True
        self._generate_id = request_id
        received = generate.received_position if generate.HasField("received_position") else start
        assert received <= session.position
        if session.consumed[received:]:
            self._tokens(session, session.consumed[received:])

    def _generate(self) -> None:
        session = self._server.find(self._id)
        if session is None or not session.is_generating:
            return
        count = min(self._server.random.randrange(1, 4), session.limit - session.num_produced)
        made = []
        for _ in range(count):
            made.append(chosen(session.consumed))
            session.consumed.append(made[-1])
        session.is_generating = session.num_produced < session.limit
        self._tokens(session, made)

    def _tokens(self, session: ModelSession, made: list[int]) -> None:
        generated = pb.Generated(tokens=[pb.Token(id=token, text=str(token)) for token in made])
        if session.num_produced >= session.limit:
            session.is_generating = False
            generated.finish_reason = pb.FINISH_REASON_MAX_TOKENS
        self._put(self._generate_id, session.position, generated=generated)

    def _mismatch(self, request_id: int, session: ModelSession) -> None:
        code = grpc.StatusCode.FAILED_PRECONDITION
        self._refuse(request_id, code, "elsewhere", "POSITION_MISMATCH", session.position)

    def _refuse(self, request_id: int, code: grpc.StatusCode, message: str, reason: str, position: int) -> None:
        metadata = {"position": str(position)} if reason == "POSITION_MISMATCH" else {}
        error = error_pb2.Error(code=code.value[0], message=message, reason=reason, metadata=metadata)
        self._put(request_id, position, error=error)

    def _put(
        self,
        request_id: int,
        position: int,
        *,
        opened: pb.Opened | None = None,
        fed: pb.Fed | None = None,
        generated: pb.Generated | None = None,
        cancelled: pb.Cancelled | None = None,
        closed: pb.Closed | None = None,
        error: error_pb2.Error | None = None,
    ) -> None:
        self.outbox.append(
            pb.StreamResponse(
                request_id=request_id,
                session_id=self._id,
                position=position,
                opened=opened,
                fed=fed,
                generated=generated,
                cancelled=cancelled,
                closed=closed,
                error=error,
            )
        )

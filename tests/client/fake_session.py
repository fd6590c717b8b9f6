"""The server side of one session, in memory. It implements positions, replays, cancellation and notices.

After n tokens, its model chooses the token with id 2 + n % 4. A generation ends at position 5. A session with source
`stall` has no end: a generation produces at most 3 tokens and then waits until it is cancelled.
"""

from __future__ import annotations

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

VOCABULARY = ("<s>", "</s>", "A", "B", "C", "D")
END = 5


class FakeSession:
    """Answers one request at a time with `handle`."""

    def __init__(self) -> None:
        self.id = ""
        self.consumed: list[int] = []
        self.num_applied = 0
        self.is_open = False
        self.is_generating = False
        self._stalls = False
        self._generate_id = 0
        self._last_feed: tuple[int, pb.Feed, pb.Fed] | None = None

    @property
    def position(self) -> int:
        return len(self.consumed)

    def handle(self, request: pb.StreamRequest) -> list[pb.StreamResponse]:
        kind = request.WhichOneof("request")
        assert kind is not None
        assert request.request_id > 0
        if kind == "open":
            return self._open(request)
        assert request.session_id == self.id
        if not self.is_open:
            return [self._refuse(request.request_id, 5, f"session_id = {self.id!r} is gone", "SESSION_NOT_FOUND")]
        if kind == "feed":
            return [self._feed(request)]
        if kind == "generate":
            return self._generate(request)
        ended = self._cancelled()
        if kind == "cancel":
            count = pb.Cancelled(request_count=len(ended))
            return [*ended, self._response(request.request_id, cancelled=count)]
        self.is_open = False
        return [*ended, self._response(request.request_id, closed=pb.Closed(reason=pb.CLOSE_REASON_CLIENT))]

    def lose(self) -> None:
        """Loses what it has consumed, and what it could answer again."""
        self.consumed.clear()
        self._last_feed = None

    def evict(self) -> pb.StreamResponse:
        """Closes the session as idle. Returns the notice."""
        self.is_open = False
        return self._response(0, closed=pb.Closed(reason=pb.CLOSE_REASON_IDLE))

    def output(self, spec: pb.OutputSpec, position: int) -> pb.StepOutput:
        """Returns the model's output at a position."""
        output = pb.StepOutput(position=position)
        if spec.kind == pb.OUTPUT_KIND_LOGITS:
            output.logits.extend(float(i == next_id(position)) for i in range(len(VOCABULARY)))
        elif spec.kind == pb.OUTPUT_KIND_TOP_K:
            ids = [(next_id(position) + i) % len(VOCABULARY) for i in range(spec.top_k)]
            output.tokens.extend(pb.Token(id=i, text=VOCABULARY[i], log_probability=-0.5) for i in ids)
        else:
            output.tokens.add(id=next_id(position), text=VOCABULARY[next_id(position)])
        return output

    def _open(self, request: pb.StreamRequest) -> list[pb.StreamResponse]:
        message = request.open
        if message.HasField("resume"):
            if not self.is_open:
                return [self._refuse(request.request_id, 5, f"session {self.id!r} is unknown", "SESSION_NOT_FOUND")]
            opened = pb.Opened(model="toy", version=3, restored_from=pb.RESTORED_FROM_MEMORY)
            return [self._response(request.request_id, opened=opened)]
        if message.model != "toy":
            return [self._refuse(request.request_id, 5, f"model {message.model!r} is unknown", "MODEL_NOT_FOUND")]
        self.id = request.session_id or "made-by-server"
        self.is_open = True
        source = source_tokens(message.source)
        self._stalls = "".join(token.text for token in source) == "stall"
        opened = pb.Opened(model="toy", version=message.version or 3, source=source)
        if message.HasField("outputs"):
            opened.output.CopyFrom(self.output(message.outputs, 0))
        return [self._response(request.request_id, opened=opened)]

    def _feed(self, request: pb.StreamRequest) -> pb.StreamResponse:
        feed, start = request.feed, request.feed.position
        if self._last_feed is not None and self._last_feed[:2] == (start, feed):
            again = pb.Fed(outputs=self._last_feed[2].outputs, replayed=True)
            return self._response(request.request_id, fed=again)
        ids = list(feed.token_ids)
        for index, name in enumerate(feed.tokens):
            if name not in VOCABULARY:
                message, field = f"feed.tokens[{index}] = {name!r} is not in the vocabulary", f"feed.tokens[{index}]"
                return self._refuse(request.request_id, 3, message, "UNKNOWN_TOKEN", field=field)
            ids.append(VOCABULARY.index(name))
        if not ids:
            return self._refuse(request.request_id, 3, "feed is empty", "EMPTY_SEQUENCE", field="feed")
        if start != self.position:
            return self._mismatch(request.request_id, start)
        fed = pb.Fed()
        for token_id in ids:
            self.consumed.append(token_id)
            if feed.outputs.every_position:
                fed.outputs.append(self.output(feed.outputs, self.position))
        if not feed.outputs.every_position and feed.outputs.kind != pb.OUTPUT_KIND_NONE:
            fed.outputs.append(self.output(feed.outputs, self.position))
        self.num_applied += 1
        self._last_feed = (start, feed, fed)
        return self._response(request.request_id, fed=fed)

    def _generate(self, request: pb.StreamRequest) -> list[pb.StreamResponse]:
        message = request.generate
        if message.position != self.position:
            return [self._mismatch(request.request_id, message.position)]
        self._last_feed = None
        self._generate_id = request.request_id
        responses: list[pb.StreamResponse] = []
        limit = message.decoding.max_tokens or 100
        for count in range(limit + 1):
            if count == limit or (self.position >= END and not self._stalls):
                reason = pb.FINISH_REASON_MAX_TOKENS if count == limit else pb.FINISH_REASON_EOS
                generated = pb.Generated(finish_reason=reason)
                return [*responses, self._response(request.request_id, generated=generated)]
            if count == 3 and self._stalls:
                self.is_generating = True
                return responses
            token = self._chosen(message.decoding)
            self.consumed.append(token.id)
            responses.append(self._response(request.request_id, generated=pb.Generated(tokens=[token])))
        raise AssertionError("the loop ends by returning")

    def _chosen(self, decoding: pb.Decoding) -> pb.Token:
        token = pb.Token(id=next_id(self.position), text=VOCABULARY[next_id(self.position)])
        if decoding.log_probabilities:
            token.log_probability = -0.5
        return token

    def _cancelled(self) -> list[pb.StreamResponse]:
        if not self.is_generating:
            return []
        self.is_generating = False
        return [self._refuse(self._generate_id, 1, f"cancelled at position {self.position}", "CANCELLED")]

    def _mismatch(self, request_id: int, start: int) -> pb.StreamResponse:
        message = f"position = {start}, but the session is at {self.position}"
        return self._refuse(request_id, 9, message, "POSITION_MISMATCH", position=str(self.position))

    def _refuse(
        self, request_id: int, code: int, message: str, reason: str, *, field: str = "", **metadata: str
    ) -> pb.StreamResponse:
        error = error_pb2.Error(code=code, message=message, reason=reason, field=field, metadata=metadata)
        return self._response(request_id, error=error)

    def _response(
        self,
        request_id: int,
        *,
        opened: pb.Opened | None = None,
        fed: pb.Fed | None = None,
        generated: pb.Generated | None = None,
        cancelled: pb.Cancelled | None = None,
        closed: pb.Closed | None = None,
        error: error_pb2.Error | None = None,
    ) -> pb.StreamResponse:
        return pb.StreamResponse(
            request_id=request_id,
            session_id=self.id,
            position=self.position,
            opened=opened,
            fed=fed,
            generated=generated,
            cancelled=cancelled,
            closed=closed,
            error=error,
        )


def next_id(position: int) -> int:
    """Returns the id of the token that follows `position` tokens."""
    return 2 + position % 4


def source_tokens(source: pb.Sequence) -> list[pb.Token]:
    """Returns the source's tokens as the toy model reads them: one for each character, with its code as id."""
    names = list(source.text) or list(source.tokens.names) or [chr(i) for i in source.ids.ids]
    return [pb.Token(id=ord(name[0]), text=name) for name in names]

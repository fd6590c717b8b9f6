"""Keeps what one session has consumed, so that the client can replay it to a restored session. Pure.

Rules:

1. What the program feeds at a position replaces everything that was kept from that position on. So after a rewind the
   history has the tokens fed after the rewind, and not the earlier ones.
2. Tokens of a generation may arrive twice, because a request is sent again after a lost connection. The second time,
   they must be equal.
3. A mark belongs to the end of a feed. A replay sets it again. It is dropped together with the tokens before it.
4. Only the tokens from position `start` to `end` are kept. Nothing outside is ever replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import grpc

from carousel._tensors import pieces, tensor_of
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb

Consumed: TypeAlias = Sequence[str] | Sequence[int] | Sequence[bytes]
"""Token names, token ids, or vectors in wire format."""

_MAX_MERGED = 256
"""Generated tokens arrive a few at a time. Up to this many are kept, and replayed, as one feed."""


class _Piece:
    """Tokens from `start` on that are replayed as one feed. is_marked: whether a mark is set after the last one."""

    __slots__ = ("is_marked", "start", "tokens")

    def __init__(self, start: int, tokens: Consumed, *, is_marked: bool) -> None:
        self.start = start
        self.tokens = tokens if isinstance(tokens, list) else list(tokens)
        self.is_marked = is_marked

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def feed(self, begin: int, end: int) -> pb.Feed:
        """Makes the feed for this piece's part of the positions `begin` to `end`."""
        begin = max(begin, self.start)
        tokens = self.tokens[begin - self.start : end - self.start]
        message = pb.Feed(
            position=begin,
            outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE),
            mark=self.is_marked and self.end <= end,
        )
        if isinstance(tokens[0], bytes):
            message.features.CopyFrom(tensor_of(tokens))  # type: ignore[arg-type]  # all have the type of the first
        elif isinstance(tokens[0], str):
            message.tokens.extend(tokens)  # type: ignore[arg-type]  # all have the type of the first
        else:
            message.token_ids.extend(tokens)  # type: ignore[arg-type]  # all have the type of the first
        return message


class History:
    """What a session consumed from `start` to `end`. keeps_tokens: if False, it keeps only the positions."""

    def __init__(self, start: int = 0, *, keeps_tokens: bool = True) -> None:
        self.start = self.end = start
        self.keeps_tokens = keeps_tokens
        self._pieces: list[_Piece] = []

    def write(self, position: int, tokens: Consumed, *, mark: bool = False) -> None:
        """Records that the session consumed tokens from `position` on, and nothing after them.

        mark: whether a mark was set after the last of them.
        """
        if position > self.end:
            self.restart(position)
        self.truncate(position)
        self._append(tokens, is_marked=mark, may_merge=False)

    def extend(self, position: int, tokens: Consumed) -> None:
        """Records generated tokens. Those that are already kept must be equal.

        Raises CarouselError with code DATA_LOSS if they are not.
        """
        if position > self.end:
            self.restart(position)
        num_known = min(self.end - position, len(tokens))
        for at, kept in self._kept(position, position + num_known):
            if kept != tokens[at - position]:
                raise CarouselError(
                    f"the server generated another token at position {at} than before the connection was lost:"
                    " open a new session",
                    code=grpc.StatusCode.DATA_LOSS,
                    reason="GENERATION_CHANGED",
                )
        self._append(tokens[num_known:], is_marked=False, may_merge=True)

    def truncate(self, position: int) -> None:
        """Drops everything from `position` on, because the session went back there."""
        if position >= self.end:
            return
        if position < self.start:
            self.restart(position)
            return
        while self._pieces and self._pieces[-1].start >= position:
            self._pieces.pop()
        if self._pieces and self._pieces[-1].end > position:
            last = self._pieces[-1]
            del last.tokens[position - last.start :]
            last.is_marked = False
        self.end = position

    def restart(self, position: int) -> None:
        """Drops everything: the client does not know what the session consumed before `position`."""
        self.start = self.end = position
        self._pieces.clear()

    def forget(self, position: int) -> None:
        """Drops pieces that end at or before `position`, up to which the session is stored."""
        num_stored = 0
        while num_stored < len(self._pieces) and self._pieces[num_stored].end <= position:
            num_stored += 1
        if num_stored:
            del self._pieces[:num_stored]
            self.start = self._pieces[0].start if self._pieces else self.end

    def between(self, begin: int, end: int) -> Iterator[pb.Feed]:
        """Yields feeds that take a session from `begin` to `end`. Raises LookupError if these tokens are not kept."""
        if begin < self.start or end > self.end:
            raise LookupError(f"positions {begin} to {end} are needed, but only {self.start} to {self.end} are kept")
        return (piece.feed(begin, end) for piece in list(self._pieces) if piece.end > begin and piece.start < end)

    def _append(self, tokens: Consumed, *, is_marked: bool, may_merge: bool) -> None:
        if not tokens:
            return
        if not self.keeps_tokens:
            self.restart(self.end + len(tokens))
            return
        last = self._pieces[-1] if self._pieces else None
        if (
            may_merge
            and last is not None
            and not last.is_marked
            and len(last.tokens) + len(tokens) <= _MAX_MERGED
            and isinstance(last.tokens[0], type(tokens[0]))
        ):
            last.tokens.extend(tokens)
        else:
            self._pieces.append(_Piece(self.end, tokens, is_marked=is_marked))
        self.end += len(tokens)

    def _kept(self, begin: int, end: int) -> Iterator[tuple[int, object]]:
        """Yields the kept tokens from `begin` to `end`, each with its position."""
        for piece in reversed(self._pieces):
            if piece.end <= begin:
                return
            first = max(begin, piece.start)
            yield from enumerate(islice(piece.tokens, first - piece.start, max(0, end - piece.start)), first)


def consumed_by(feed: pb.Feed) -> Consumed:
    """What a feed makes a session consume."""
    if feed.HasField("features"):
        return pieces(feed.features)
    return list(feed.tokens) or list(feed.token_ids)

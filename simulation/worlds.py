"""The possible states of one session, as far as its client can know: the plain model of a session.

A world is one possible (position, hidden state). A client that received all its answers knows exactly one world. A lost
answer, or work that was cancelled in the middle, adds worlds. Each answer removes the worlds that it contradicts. When
no world is left, the server has given a wrong answer.

Pure: no clock, no stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import NamedTuple, TypeAlias

from carousel.v1 import inference_pb2 as pb
from simulation.adapters import sampled
from simulation.arithmetic import EOS_ID
from simulation.bare import Bare
from simulation.states import State, beginning, likeliest, log_probability


class World(NamedTuple):
    """hidden: the state after all tokens up to `position`, including those that the server has not consumed yet."""

    position: int
    hidden: State


@dataclass(frozen=True, slots=True)
class Choosing:
    """How a generation chooses tokens. seed: of the sampling; None: always the most likely token."""

    max_tokens: int
    min_tokens: int = 0
    seed: int | None = None

    def token(self, world: World, num_produced: int) -> int:
        """Returns the next token. num_produced: tokens of the generation before it."""
        if self.seed is not None:
            return sampled(world.hidden, world.position, self.seed, num_produced, self.min_tokens)
        token = likeliest(world.hidden)
        if token == EOS_ID and num_produced < self.min_tokens:
            row = list(world.hidden.logits)
            row[EOS_ID] = float("-inf")
            token = row.index(max(row))
        return token

    def run(self, world: World) -> tuple[list[World], pb.FinishReason.ValueType]:
        """Returns the worlds of a whole generation, beginning with the one before it, and its finish reason."""
        worlds = [world]
        while len(worlds) <= self.max_tokens:
            token = self.token(worlds[-1], len(worlds) - 1)
            if token == EOS_ID:
                return worlds, pb.FINISH_REASON_EOS
            worlds.append(World(worlds[-1].position + 1, worlds[-1].hidden.step(token)))
        return worlds, pb.FINISH_REASON_MAX_TOKENS


def first_world(model: str, source: Sequence[int] = ()) -> World:
    """Returns the first world of a session."""
    return World(0, beginning(model, source))


def fed(world: World, tokens: Iterable[int]) -> list[World]:
    """Returns the worlds after each token of a feed, beginning with the one before it."""
    worlds = [world]
    for token in tokens:
        worlds.append(World(worlds[-1].position + 1, worlds[-1].hidden.step(token)))
    return worlds


class Worlds:
    """All worlds that are possible for one session. now: the possible worlds; ever: all states that it may have had, by
    position; marks: the states that were marked, by position. Methods that return a bool remove the worlds that an
    answer contradicts, and return whether any is left; if none is left, `now` stays unchanged."""

    def __init__(self, first: Iterable[World]) -> None:
        self.now: list[World] = list(first)
        self.ever: dict[int, list[State]] = {}
        self.marks: dict[int, list[State]] = {}
        self._pass(self.now)

    @property
    def positions(self) -> list[int]:
        """The positions at which the session may be, in order."""
        return sorted({world.position for world in self.now})

    def fed(self, tokens: Sequence[int], start: int | None, position: int, matches: Matches, *, mark: bool) -> bool:
        """Applies an answer that tokens were fed and that the session is now at `position`. start: the position at
        which the client expected them to begin, or None. Returns whether the answer is possible."""
        following: list[World] = []
        for world in self.now:
            if start is None or start == world.position:
                way = fed(world, tokens)
                if way[-1].position == position and matches(way):
                    self._pass(way)
                    following.append(way[-1])
        if mark:
            for world in following:
                self.marks.setdefault(world.position, []).append(world.hidden)
        return self._take(following)

    def is_at(self, position: int, matches: Callable[[World], bool] = lambda world: True) -> bool:
        """Applies an answer that the session is at a position. matches: whether a world agrees with the answer. Returns
        whether the answer is possible."""
        return self._take([world for world in self.now if world.position == position and matches(world)])

    def repeats(self, tokens: Sequence[int], start: int, matches: Matches, *, may_have_gone_on: bool) -> bool:
        """Applies a repeated answer to a feed from `start`. may_have_gone_on: whether the session may have moved beyond
        the feed's end. Returns whether the answer is possible."""
        ends = {way[-1] for way in self.ways(tokens, start) if matches(way)}
        if not ends:
            return False
        position = start + len(tokens)
        is_on = may_have_gone_on
        return self._take([world for world in self.now if world in ends or (is_on and world.position > position)])

    def ways(self, tokens: Sequence[int], start: int) -> list[list[World]]:
        """Returns, for each possible state at `start`, the worlds of a feed from there."""
        return [fed(world, tokens) for world in self.known(start)]

    def is_not_at(self, position: int) -> bool:
        """Applies an answer that the session is not at a position. Returns whether the answer is possible."""
        return self._take([world for world in self.now if world.position != position])

    def generated(
        self,
        bases: list[World],
        choosing: Choosing,
        tokens: list[int],
        reason: int,
        *,
        skipped: int,
        position: int,
        is_again: bool = False,
    ) -> bool:
        """Applies the end of a generation that began in one of `bases`. tokens: those that were delivered, after the
        first `skipped`. is_again: whether other requests may have followed it. Returns whether this is possible."""
        following = []
        for base in bases:
            way, expected = choosing.run(base)
            if [*_tokens_of(base, choosing, way)][skipped:] != tokens or reason != expected:
                continue
            if way[-1].position == position:
                self._pass(way)
                following.append(way[-1])
        if following and is_again:
            following += [world for world in self.now if world.position > position]
        return self._take(following)

    def generates(self, bases: list[World], choosing: Choosing, skipped: int, tokens: list[int]) -> bool:
        """Applies the tokens of a generation that stopped early: it may have continued after them. Returns whether the
        tokens are possible."""
        following = list(self.now) if not tokens else []
        for base in bases:
            way, _ = choosing.run(base)
            if [*_tokens_of(base, choosing, way)][skipped : skipped + len(tokens)] == tokens:
                self._pass(way)
                following += way[skipped + len(tokens) :]
        return self._take(following)

    def may_be_fed(self, tokens: Sequence[int], start: int | None, *, mark: bool) -> None:
        """Applies a feed that may have been carried out in full, in part, or not at all."""
        following = list(self.now)
        for world in self.now:
            if start is None or start == world.position:
                way = fed(world, tokens)
                self._pass(way)
                following += way[1:]
                if mark:
                    self.marks.setdefault(way[-1].position, []).append(way[-1].hidden)
        self._take(following)

    def restored(self, position: int) -> bool:
        """Applies a restore from the store. Returns whether the session may ever have been at `position`."""
        return self._take([World(position, hidden) for hidden in self.ever.get(position, ())])

    def at_least(self, position: int) -> bool:
        """Applies a resume from memory: the session may have moved since it was at `position`. Returns whether it may
        have been there."""
        if position not in self.positions:
            return False
        return self._take([world for world in self.now if world.position >= position])

    def rewound(self, position: int, *, is_stored: bool) -> bool:
        """Applies a rewind to a mark. is_stored: whether no later state can be restored from the store. Returns whether
        the mark is possible."""
        hiddens = self.marks.get(position, [])
        if is_stored:
            self.ever = {at: some for at, some in self.ever.items() if at <= position}
        self.marks = {at: some for at, some in self.marks.items() if at <= position}
        return self._take([World(position, hidden) for hidden in hiddens])

    def set_to(self, worlds: list[World]) -> None:
        """Applies a change of the session's state by a client."""
        self._pass(worlds)
        self._take(worlds)

    def known(self, position: int) -> list[World]:
        """Returns the worlds that may have been at a position, now or before."""
        return [World(position, hidden) for hidden in self.ever.get(position, ())]

    def _take(self, worlds: list[World]) -> bool:
        if worlds:
            self.now = list(dict.fromkeys(worlds))
        return bool(worlds)

    def _pass(self, worlds: Iterable[World]) -> None:
        for world in worlds:
            some = self.ever.setdefault(world.position, [])
            if world.hidden not in some:
                some.append(world.hidden)


Matches: TypeAlias = Callable[[Sequence[World]], bool]
"""Whether an answer agrees with the worlds of a feed, which begin with the one before it."""


def output_matches(outputs: Sequence[pb.StepOutput], kind: int, tokens: Sequence[int]) -> Matches:
    """Returns a function that says whether outputs agree with the worlds of a feed. Compares only the last output,
    except for emitted tokens. tokens: those that were fed."""

    def matches(way: Sequence[World]) -> bool:
        world = way[-1]
        if kind == pb.OUTPUT_KIND_NONE:
            return not outputs
        if kind == pb.OUTPUT_KIND_EMITTED:
            return _are_emitted(outputs, way, tokens)
        if not outputs or outputs[-1].position != world.position:
            return False
        if kind == pb.OUTPUT_KIND_LOGITS:
            return tuple(outputs[-1].logits) == world.hidden.logits
        return [token.id for token in outputs[-1].tokens] == [likeliest(world.hidden)]

    return matches


def score_matches(targets: list[list[int]], scores: Sequence[pb.TargetScore]) -> Callable[[World], bool]:
    """Returns a function that says whether scores of targets agree with a world."""

    def matches(world: World) -> bool:
        if len(scores) != len(targets):
            return False
        for target, score in zip(targets, scores, strict=True):
            hidden, expected = world.hidden, []
            for token in target:
                expected.append(log_probability(hidden, token))
                hidden = hidden.step(token)
            found = list(score.log_probabilities)
            if len(found) != len(expected):
                return False
            if not all(isclose(a, b, abs_tol=1e-4) for a, b in zip(found, expected, strict=True)):
                return False
        return True

    return matches


def _are_emitted(outputs: Sequence[pb.StepOutput], way: Sequence[World], tokens: Sequence[int]) -> bool:
    """Whether the outputs are what a transducer emits for the fed frames. Frames without tokens have no output."""
    rest = list(outputs)
    for before, token in zip(way, tokens, strict=False):
        assert isinstance(before.hidden, Bare)  # noqa: S101  # only transducers have this kind of output
        expected = before.hidden.emitted(token)
        if not expected.token_ids:
            continue
        if not rest or (one := rest.pop(0)).position != before.position + 1:
            return False
        if [each.id for each in one.tokens] != [*expected.token_ids] or one.num_limited != expected.num_limited:
            return False
        pairs = zip(one.tokens, expected.log_probabilities, strict=True)
        if not all(isclose(each.log_probability, score, abs_tol=1e-4) for each, score in pairs):
            return False
    return not rest


def _tokens_of(base: World, choosing: Choosing, way: list[World]) -> Iterable[int]:
    for count, world in enumerate(way[:-1]):
        yield choosing.token(world, count)

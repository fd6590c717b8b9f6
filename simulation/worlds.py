"""What one session may be, as its client can know: the plain model of a session.

A world is one possible (position, hidden state). A client that has all of its answers knows exactly one; an answer that
was lost, or work that was cancelled in the middle, adds worlds, and the next answer takes those away that it
contradicts. When no world is left the server has said something wrong.

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
    """hidden: after every token up to `position`, also those that the server has not consumed yet."""

    position: int
    hidden: State


@dataclass(frozen=True, slots=True)
class Choosing:
    """How a generation chooses. seed: None for the likeliest token."""

    max_tokens: int
    min_tokens: int = 0
    seed: int | None = None

    def token(self, world: World, num_generated: int) -> int:
        """The next token."""
        if self.seed is not None:
            return sampled(world.hidden, world.position, self.seed, num_generated, self.min_tokens)
        token = likeliest(world.hidden)
        if token == EOS_ID and num_generated < self.min_tokens:
            row = list(world.hidden.logits)
            row[EOS_ID] = float("-inf")
            token = row.index(max(row))
        return token

    def run(self, world: World) -> tuple[list[World], pb.FinishReason.ValueType]:
        """All worlds of a whole generation, the first before it, and why it ends."""
        worlds = [world]
        while len(worlds) <= self.max_tokens:
            token = self.token(worlds[-1], len(worlds) - 1)
            if token == EOS_ID:
                return worlds, pb.FINISH_REASON_EOS
            worlds.append(World(worlds[-1].position + 1, worlds[-1].hidden.step(token)))
        return worlds, pb.FINISH_REASON_MAX_TOKENS


def first_world(model: str, source: Sequence[int] = ()) -> World:
    """Where a session of a model begins."""
    return World(0, beginning(model, source))


def fed(world: World, tokens: Iterable[int]) -> list[World]:
    """The worlds on the way through a feed, the first before it."""
    worlds = [world]
    for token in tokens:
        worlds.append(World(worlds[-1].position + 1, worlds[-1].hidden.step(token)))
    return worlds


class Worlds:
    """All that one session may be. ever: every state that it may have passed through, by position; marks: those that
    were marked."""

    def __init__(self, first: Iterable[World]) -> None:
        self.now: list[World] = list(first)
        self.ever: dict[int, list[State]] = {}
        self.marks: dict[int, list[State]] = {}
        self._pass(self.now)

    @property
    def positions(self) -> list[int]:
        """Where it may stand."""
        return sorted({world.position for world in self.now})

    def fed(self, tokens: Sequence[int], start: int | None, position: int, matches: Matches, *, mark: bool) -> bool:
        """It has consumed tokens, and stands at `position` now. start: where the client meant them to begin. Returns
        whether that is possible."""
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
        """It is at a position, and an answer says something about it. Returns whether that is possible."""
        return self._take([world for world in self.now if world.position == position and matches(world)])

    def repeats(self, tokens: Sequence[int], start: int, matches: Matches, *, may_have_gone_on: bool) -> bool:
        """What a feed from `start` was answered is told again, and it stands where that led, or is behind it now if it
        may have gone on. Returns whether that is possible."""
        ends = {way[-1] for way in self.ways(tokens, start) if matches(way)}
        if not ends:
            return False
        position = start + len(tokens)
        is_on = may_have_gone_on
        return self._take([world for world in self.now if world in ends or (is_on and world.position > position)])

    def ways(self, tokens: Sequence[int], start: int) -> list[list[World]]:
        """The worlds on the ways that a feed from `start` may have gone."""
        return [fed(world, tokens) for world in self.known(start)]

    def is_not_at(self, position: int) -> bool:
        """It is elsewhere. Returns whether that is possible."""
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
        """A generation from one of `bases` has ended. tokens: what was told of it, after the first `skipped`. is_again:
        whether others may have followed it."""
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
        """A generation has stopped early: it may have gone on after what was told. Returns whether the tokens are
        possible."""
        following = list(self.now) if not tokens else []
        for base in bases:
            way, _ = choosing.run(base)
            if [*_tokens_of(base, choosing, way)][skipped : skipped + len(tokens)] == tokens:
                self._pass(way)
                following += way[skipped + len(tokens) :]
        return self._take(following)

    def may_be_fed(self, tokens: Sequence[int], start: int | None, *, mark: bool) -> None:
        """Tokens were consumed, or some of them, or none."""
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
        """It was brought back from the store. Returns whether it was ever there."""
        return self._take([World(position, hidden) for hidden in self.ever.get(position, ())])

    def at_least(self, position: int) -> bool:
        """It stood at a position when it was last looked at, and may be further on."""
        if position not in self.positions:
            return False
        return self._take([world for world in self.now if world.position >= position])

    def rewound(self, position: int, *, is_stored: bool) -> bool:
        """It was set back to a mark. is_stored: nothing later can come back from the store."""
        hiddens = self.marks.get(position, [])
        if is_stored:
            self.ever = {at: some for at, some in self.ever.items() if at <= position}
        self.marks = {at: some for at, some in self.marks.items() if at <= position}
        return self._take([World(position, hidden) for hidden in hiddens])

    def set_to(self, worlds: list[World]) -> None:
        """It was written from outside."""
        self._pass(worlds)
        self._take(worlds)

    def known(self, position: int) -> list[World]:
        """The worlds at a position, now or before."""
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
"""Whether an answer is what a feed gives, by the worlds on its way, the first before it."""


def output_matches(outputs: Sequence[pb.StepOutput], kind: int, tokens: Sequence[int]) -> Matches:
    """Whether the outputs of an answer are those of a way; but for tokens emitted, the last alone. tokens: fed."""

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
    """Whether scores are those of targets from a world on."""

    def matches(world: World) -> bool:
        if len(scores) != len(targets):
            return False
        for target, score in zip(targets, scores, strict=True):
            hidden, expected = world.hidden, []
            for token in target:
                expected.append(log_probability(hidden, token))
                hidden = hidden.step(token)
            told = list(score.log_probabilities)
            if len(told) != len(expected):
                return False
            if not all(isclose(a, b, abs_tol=1e-4) for a, b in zip(told, expected, strict=True)):
                return False
        return True

    return matches


def _are_emitted(outputs: Sequence[pb.StepOutput], way: Sequence[World], tokens: Sequence[int]) -> bool:
    """Whether all outputs are what the frames on a way make a transducer say, which has one for each that says any."""
    told = list(outputs)
    for before, token in zip(way, tokens, strict=False):
        assert isinstance(before.hidden, Bare)  # noqa: S101  # no other model is asked for this
        expected = before.hidden.emitted(token)
        if not expected.token_ids:
            continue
        if not told or (one := told.pop(0)).position != before.position + 1:
            return False
        if [each.id for each in one.tokens] != [*expected.token_ids] or one.num_limited != expected.num_limited:
            return False
        pairs = zip(one.tokens, expected.log_probabilities, strict=True)
        if not all(isclose(each.log_probability, score, abs_tol=1e-4) for each, score in pairs):
            return False
    return not told


def _tokens_of(base: World, choosing: Choosing, way: list[World]) -> Iterable[int]:
    for count, world in enumerate(way[:-1]):
        yield choosing.token(world, count)

"""Beam search as a pure state machine: takes logits, returns what to run next. No graph, no model state, no clock.

1. The beams are rows of the batch, best first. A step keeps the best of all continuations by one token. So a row's
   state comes from its parent row: the engine gathers the states by `parents` and feeds the rows `tokens`.
2. A continuation with the end token or a stop token is finished. It leaves the beam, and its place is not filled again.
   So the beam becomes narrower, and the search ends when `beam_size` continuations have finished (as in Bahdanau et al.
   2015, and Sutskever et al. 2014, section 3.2). A beam of one is the greedy choice.
3. The best `num_best` of the finished are kept, by score: the sum of their log-probabilities divided by
   length ** length_penalty (as in Wu et al. 2016, section 7, without its constant). The end token counts in both.
4. The search also ends when no running row can reach a better score than the worst kept one. A row's sum only falls. So
   its best possible score is its present sum at the most favourable length: the longest permitted, or for a negative
   length_penalty the next.
5. A token with probability 0 or NaN is no continuation.
6. Equal continuations rank by beam, the lower first, then by token. Equal results rank by when they finished, the first
   first.

`K` is the number of running rows, `V` the vocabulary's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.decoding import FinishReason, FloatArray, IntArray, log_softmax


class BeamStep(NamedTuple):
    """What to run next. parents, tokens: [K] for each row its parent row in the last step, and the token to feed it. K
    is 0 when the search is done."""

    parents: IntArray
    tokens: IntArray
    is_done: bool


class Hypothesis(NamedTuple):
    """A result. tokens: without the ending token `end_id`, which is None when the limit of tokens ended it.

    log_probability: the sum, including the ending token's. score: that sum divided by length ** length_penalty.
    log_probabilities: of each token, then of the ending token, if there is one.
    """

    tokens: list[int]
    end_id: int | None
    score: float
    log_probability: float
    log_probabilities: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Continuations, best first, as columns. totals: sums of log-probabilities. gains: of the last token alone."""

    parents: IntArray
    tokens: IntArray
    totals: NDArray[np.float64]
    gains: FloatArray

    def select(self, which: NDArray[np.bool_]) -> _Candidates:
        return _Candidates(self.parents[which], self.tokens[which], self.totals[which], self.gains[which])


class _Finished(NamedTuple):
    """A finished hypothesis, as the place of its last token in the history. `_spell` collects its tokens."""

    score: float
    log_probability: float
    step: int
    parent: int
    token: int
    gain: float
    finish_reason: FinishReason


class BeamSearch:
    """One search. In each step, memory grows by at most `beam_size` rows of four numbers.

    beam_size: 1 or more.
    max_tokens: 1 or more; tokens of a hypothesis, including the one that ends it.
    eos_id: the end token, if the model has one; stop_ids: other tokens that end a hypothesis.
    min_tokens: how many tokens come before an end or stop token.
    length_penalty: -10 to 10; 0 compares sums, 1 compares means per token.
    num_best: number of results, 1 to beam_size.
    Raises ValueError when beam_size, max_tokens or num_best is out of range.
    """

    def __init__(
        self,
        beam_size: int,
        max_tokens: int,
        eos_id: int | None,
        *,
        stop_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        length_penalty: float = 1.0,
        num_best: int = 1,
    ) -> None:
        if min(beam_size, max_tokens) < 1 or not 1 <= num_best <= beam_size:
            raise ValueError(f"{beam_size=}, {max_tokens=}, {num_best=} must be 1 or more, num_best at most beam_size")
        self._width = beam_size
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._eos_id = eos_id
        self._end_ids = sorted(stop_ids if eos_id is None else stop_ids | {eos_id})
        self._length_penalty = length_penalty
        self._num_best = num_best
        self._totals = np.zeros(1, np.float64)
        """[K] each running row's sum of log-probabilities, best first. At first there is one row for all beams."""
        self._history: list[_Candidates] = []
        """The continuations that kept running, for each step."""
        self._best: list[_Finished] = []

    @property
    def num_rows(self) -> int:
        """K, the number of rows of logits that the next `advance` takes: 1 at first, 0 when the search is done."""
        return len(self._totals)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not self.num_rows

    def advance(self, logits: FloatArray) -> BeamStep:
        """Advances by one token. logits: [K, V] after each running row, in the order of the last step's rows.

        Raises ValueError when K is not `num_rows`, or the search is done.
        """
        if self.is_done or len(logits) != self.num_rows:
            raise ValueError(f"logits of {len(logits)} rows for a search of {self.num_rows}")
        step = len(self._history)
        candidates = self._rank(logits, may_end=step >= self._min_tokens)
        ends = np.isin(candidates.tokens, self._end_ids)
        is_last = step + 1 == self._max_tokens
        for index in np.flatnonzero(ends | is_last).tolist():
            self._finish(candidates, index, step)
        running = candidates.select(~ends & (not is_last))
        if len(running.tokens) and self._is_beaten(float(running.totals[0]), step + 1):
            running = running.select(np.zeros(len(running.tokens), np.bool_))
        self._width -= int(ends.sum())
        self._totals = running.totals
        self._history.append(running)
        return BeamStep(running.parents, running.tokens, self.is_done)

    def results(self) -> list[Hypothesis]:
        """Returns the best finished hypotheses, best first: `num_best` when the search is done.

        Fewer when not as many were found, none when the model gave no token a probability.
        """
        return [self._spell(finished) for finished in self._best]

    def _rank(self, logits: FloatArray, *, may_end: bool) -> _Candidates:
        """Returns the best continuations of the running rows, at most as many as the beam is wide."""
        gains = log_softmax(logits)
        totals = self._totals[:, np.newaxis] + gains
        if not may_end:
            totals[:, self._end_ids] = -np.inf
        totals[np.isnan(totals)] = -np.inf
        flat = totals.ravel()
        possible = flat > -np.inf
        if flat.size > self._width:
            # keeps all that are as good as the best `width`, which are more than `width` if some are equal
            possible &= flat >= np.partition(flat, -self._width)[-self._width]
        where = np.flatnonzero(possible)
        where = where[np.argsort(-flat[where], kind="stable")[: self._width]]
        parents, tokens = np.divmod(where, logits.shape[-1])
        return _Candidates(parents, tokens, flat[where], gains.ravel()[where])

    def _finish(self, candidates: _Candidates, index: int, step: int) -> None:
        token, total = int(candidates.tokens[index]), float(candidates.totals[index])
        if token == self._eos_id:
            reason = FinishReason.EOS
        else:
            reason = FinishReason.STOP if token in self._end_ids else FinishReason.MAX_TOKENS
        parent, gain = int(candidates.parents[index]), float(candidates.gains[index])
        self._best.append(_Finished(self._score(total, step + 1), total, step, parent, token, gain, reason))
        self._best.sort(key=lambda finished: -finished.score)  # stable, so that of equals the first one stays first
        del self._best[self._num_best :]

    def _is_beaten(self, total: float, length: int) -> bool:
        """Whether the best running row, with this sum and length, cannot reach one of the kept scores any more."""
        if len(self._best) < self._num_best:
            return False
        kindest = self._max_tokens if self._length_penalty >= 0.0 else length + 1
        return self._score(total, kindest) <= self._best[-1].score

    def _score(self, total: float, length: int) -> float:
        score: float = total / length**self._length_penalty
        return score

    def _spell(self, finished: _Finished) -> Hypothesis:
        tokens, gains = [finished.token], [finished.gain]
        row = finished.parent
        for kept in reversed(self._history[: finished.step]):
            tokens.append(int(kept.tokens[row]))
            gains.append(float(kept.gains[row]))
            row = int(kept.parents[row])
        end_id = None if finished.finish_reason is FinishReason.MAX_TOKENS else tokens.pop(0)
        return Hypothesis(
            tokens[::-1], end_id, finished.score, finished.log_probability, gains[::-1], finished.finish_reason
        )

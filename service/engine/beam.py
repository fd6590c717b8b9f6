"""Beam search as a machine that takes logits and returns what to run next: no graph, no state, no clock.

1. The beams are rows of the batch, best first. A step keeps the best of all their continuations by one token, so that
   a row's state comes from the row that was its parent: the engine gathers the rows by `parents`, feeds them `tokens`.
2. A continuation by the end token or a stop token is finished. It leaves the beam and takes its place with it, so the
   beam narrows by one for each and the search ends when `beam_size` have finished (as in Bahdanau et al. 2015, and
   Sutskever et al. 2014, section 3.2). A beam of one is then the greedy choice.
3. Of the finished the best `num_best` are kept, by score: the sum of their log-probabilities over
   length ** length_penalty (as in Wu et al. 2016, section 7, without its constant), the end token counting in both.
4. The search also ends when no running row can come to a better score than the worst kept. A row's sum only falls, so
   the best that it can come to is its sum now, at the length that flatters it most: the longest permitted, or for a
   negative length_penalty the next.
5. What the model says is impossible, or NaN, is no continuation.
6. Equals rank by beam, the lower first, then by token; in the results, the one that finished first comes first.

`K` is the number of running rows, `V` the vocabulary's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.decoding import FinishReason, FloatArray, IntArray, log_softmax_batch


class BeamStep(NamedTuple):
    """What to run next. parents, tokens: [K], row by row the row of the last step that it goes on from, and the token
    that it is fed. K is 0 when the search is done."""

    parents: IntArray
    tokens: IntArray
    is_done: bool


class Hypothesis(NamedTuple):
    """A result. tokens: without the one that ended it, which is `end_id`, or None at the limit of tokens.

    log_probability: the sum, the ending token's with it. score: that over length ** length_penalty. log_probabilities:
    each token's, then the ending token's, if there is one.
    """

    tokens: list[int]
    end_id: int | None
    score: float
    log_probability: float
    log_probabilities: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Continuations, best first, as columns. totals: sums of log-probabilities. gains: the last token's own."""

    parents: IntArray
    tokens: IntArray
    totals: NDArray[np.float64]
    gains: FloatArray

    def select(self, which: NDArray[np.bool_]) -> _Candidates:
        return _Candidates(self.parents[which], self.tokens[which], self.totals[which], self.gains[which])


class _Finished(NamedTuple):
    """A finished hypothesis, by where its last token stands in the history: it is spelt out when it is a result."""

    score: float
    log_probability: float
    step: int
    parent: int
    token: int
    gain: float
    finish_reason: FinishReason


class BeamSearch:
    """One search. Memory grows by `beam_size` rows of three numbers a step.

    beam_size: 1 or more. max_tokens: 1 or more, of a hypothesis, the one that ends it with them. eos_id: the end token,
    if the model has one; stop_ids: tokens that end a hypothesis as it does. min_tokens: how many come before either.
    length_penalty: -10 to 10; 0 compares sums, 1 means per token. num_best: how many results are wanted, 1 to
    beam_size. Raises ValueError for what is out of its range.
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
        """[K], each running row's sum of log-probabilities, best first. At first all beams are the one row."""
        self._history: list[_Candidates] = []
        """What was kept running at each step."""
        self._best: list[_Finished] = []

    @property
    def num_rows(self) -> int:
        """K, the rows of logits that the next `advance` takes: 1 at first, 0 when the search is done."""
        return len(self._totals)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to run."""
        return not self.num_rows

    def advance(self, logits: FloatArray) -> BeamStep:
        """Takes what comes next after each running row. logits: [K, V], in the order of the last step's rows.

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
        """The best of those that have finished, best first: `num_best` when the search is done.

        Fewer when there are no more to be found, none when the model gave no token a probability.
        """
        return [self._spell(finished) for finished in self._best]

    def _rank(self, logits: FloatArray, *, may_end: bool) -> _Candidates:
        """The best continuations of the running rows, as many as the beam is wide."""
        gains = log_softmax_batch(logits)
        totals = self._totals[:, np.newaxis] + gains
        if not may_end:
            totals[:, self._end_ids] = -np.inf
        totals[np.isnan(totals)] = -np.inf
        flat = totals.ravel()
        possible = flat > -np.inf
        if flat.size > self._width:
            # no worse than the best `width`; more than those only where some are equal
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
        self._best.sort(key=lambda finished: -finished.score)  # stable: of equals the first stays first
        del self._best[self._num_best :]

    def _is_beaten(self, total: float, length: int) -> bool:
        """Whether the best running row, of that sum and length, can no more come among the kept."""
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

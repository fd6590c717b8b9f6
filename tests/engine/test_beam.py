"""Beam search over made-up models, compared with an exhaustive search and with a simple beam search."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.engine.beam import BeamSearch, Hypothesis
from service.engine.decoding import FinishReason, FloatArray, FloatRow, log_softmax, score

Model = Callable[[tuple[int, ...]], FloatRow]
EOS_ID = 0


class Case(NamedTuple):
    """A model and the options of a search."""

    seed: int
    size: int
    max_tokens: int
    min_tokens: int
    eos_id: int | None
    stop_ids: frozenset[int]
    length_penalty: float

    def model(self, history: tuple[int, ...]) -> FloatRow:
        key = zlib.crc32(bytes([*history, 255]), self.seed)
        return np.random.default_rng(key).standard_normal(self.size).astype(np.float32) * 2

    def search(self, beam_size: int, num_best: int = 1) -> BeamSearch:
        return BeamSearch(
            beam_size,
            self.max_tokens,
            self.eos_id,
            stop_ids=self.stop_ids,
            min_tokens=self.min_tokens,
            length_penalty=self.length_penalty,
            num_best=num_best,
        )

    @property
    def end_ids(self) -> frozenset[int]:
        return self.stop_ids if self.eos_id is None else self.stop_ids | {self.eos_id}

    def rank(self, sequence: tuple[int, ...]) -> float:
        """Returns the score of a sequence; its length includes the end token."""
        divisor: float = len(sequence) ** self.length_penalty
        return taught(self.model, sequence) / divisor

    def sequences(self, history: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        """Yields every sequence that can be a result."""
        for token in range(self.size):
            if token in self.end_ids and len(history) < self.min_tokens:
                continue
            if token in self.end_ids or len(history) + 1 == self.max_tokens:
                yield (*history, token)
            else:
                yield from self.sequences((*history, token))


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 4),
    max_tokens=st.integers(1, 4),
    min_tokens=st.integers(0, 2),
    eos_id=st.none() | st.just(EOS_ID),
    stop_ids=st.frozensets(st.integers(0, 1), max_size=1),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
)


def taught(model: Model, sequence: tuple[int, ...]) -> float:
    """Returns the log-probability of a sequence that is fed token by token."""
    logits = np.stack([model(sequence[:length]) for length in range(len(sequence))])
    return float(np.sum(score(logits, np.array(sequence, np.int64)).astype(np.float64)))


def run(search: BeamSearch, model: Model) -> list[Hypothesis]:
    """Runs a search as an engine does: gathers rows by parent. A row's state is its history."""
    rows: list[tuple[int, ...]] = [()]
    while not search.is_done:
        assert search.num_rows == len(rows)
        step = search.advance(np.stack([model(history) for history in rows]))
        assert step.is_done is search.is_done
        rows = [
            (*rows[parent], token) for parent, token in zip(step.parents.tolist(), step.tokens.tolist(), strict=True)
        ]
        assert len(set(rows)) == len(rows)
    assert rows == []
    return search.results()


def whole(hypothesis: Hypothesis) -> tuple[int, ...]:
    """Returns the sequence including its end token."""
    return (*hypothesis.tokens, *([] if hypothesis.end_id is None else [hypothesis.end_id]))


def plain_beam(case: Case, beam_size: int) -> list[tuple[int, ...]]:
    """Returns everything that a beam finds without early stopping, best first."""
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    found: list[tuple[int, ...]] = []
    width = beam_size
    while beam:
        continued = []
        for total, history in beam:
            gains = log_softmax(case.model(history)).tolist()
            for token, gain in enumerate(gains):
                if token not in case.end_ids or len(history) >= case.min_tokens:
                    continued.append((total + gain, (*history, token)))
        continued = sorted(continued, key=lambda each: -each[0])[:width]
        ended = [each for each in continued if each[1][-1] in case.end_ids]
        width -= len(ended)
        beam = [each for each in continued if each[1][-1] not in case.end_ids]
        found += [history for _, history in ended]
        if beam and len(beam[0][1]) == case.max_tokens:
            found += [history for _, history in beam]
            break
    return sorted(found, key=lambda sequence: -case.rank(sequence))


@given(CASES, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_wide_enough_beam_finds_the_best_sequences(case: Case, num_best: int) -> None:
    """The search returns the n best of all sequences with their scores; early stopping loses none of them."""
    assume(case.max_tokens > case.min_tokens)
    ranked = sorted(case.sequences(), key=lambda sequence: -case.rank(sequence))
    found = run(case.search(max(len(ranked), num_best), num_best), case.model)
    assert [whole(each) for each in found] == ranked[:num_best]
    assert [each.score for each in found] == pytest.approx([case.rank(sequence) for sequence in ranked[:num_best]])


@given(CASES, st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_a_narrow_beam_finds_what_a_plain_one_does(case: Case, beam_size: int, data: st.DataObject) -> None:
    case = case._replace(size=data.draw(st.integers(3, 7)), max_tokens=data.draw(st.integers(1, 9)))
    num_best = data.draw(st.integers(1, beam_size))
    found = run(case.search(beam_size, num_best), case.model)
    assert [whole(each) for each in found] == plain_beam(case, beam_size)[:num_best]


@given(CASES, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_results_have_the_scores_of_teacher_forcing(case: Case, beam_size: int) -> None:
    """Log-probabilities are bit-identical; their sum, the score, the finish reason, the length and the order agree with
    them."""
    case = case._replace(size=6, max_tokens=7)
    found = run(case.search(beam_size, num_best=beam_size), case.model)
    assert len(found) == beam_size
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for each in found:
        sequence = whole(each)
        logits = np.stack([case.model(sequence[:length]) for length in range(len(sequence))])
        assert each.log_probabilities == score(logits, np.array(sequence, np.int64)).tolist()
        assert each.log_probability == pytest.approx(sum(each.log_probabilities), rel=1e-12)
        assert each.score == each.log_probability / len(sequence) ** case.length_penalty
        assert case.end_ids.isdisjoint(each.tokens)
        if each.end_id is None:
            assert each.finish_reason is FinishReason.MAX_TOKENS
            assert len(each.tokens) == case.max_tokens
        else:
            assert each.finish_reason is (FinishReason.EOS if each.end_id == case.eos_id else FinishReason.STOP)
            assert case.min_tokens <= len(each.tokens) < case.max_tokens


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_a_beam_of_one_is_greedy(case: Case) -> None:
    case = case._replace(size=6, max_tokens=12)
    sequence: tuple[int, ...] = ()
    while len(sequence) < case.max_tokens and (not sequence or sequence[-1] not in case.end_ids):
        logits = case.model(sequence)
        if len(sequence) < case.min_tokens:
            logits[sorted(case.end_ids)] = -np.inf
        sequence = (*sequence, int(logits.argmax()))
    (found,) = run(case.search(1), case.model)
    assert whole(found) == sequence


def step_once(search: BeamSearch, rows: list[list[float]]) -> tuple[list[int], list[int], bool]:
    parents, tokens, is_done = search.advance(np.array(rows, np.float32))
    return parents.tolist(), tokens.tolist(), is_done


def test_equals_rank_by_beam_then_by_token() -> None:
    search = BeamSearch(3, 9, None)
    assert step_once(search, [[0.0] * 4]) == ([0, 0, 0], [0, 1, 2], False)
    assert step_once(search, [[0.0] * 4] * 3) == ([0, 0, 0], [0, 1, 2], False)
    never = -float("inf")
    rows = [[never, 0.0, never, 0.0], [0.0, never, 0.0, never], [0.0] * 4]
    assert step_once(search, rows) == ([0, 0, 1], [1, 3, 0], False)


def test_of_equal_results_the_one_that_finished_first_comes_first() -> None:
    search = BeamSearch(2, 2, EOS_ID, length_penalty=1.0, num_best=2)
    assert step_once(search, [[0.0, 0.0]]) == ([0], [1], False)
    assert step_once(search, [[0.0, 0.0]]) == ([], [], True)
    first, second = search.results()
    assert first.score == second.score
    assert (first.tokens, second.tokens) == ([], [1])


def test_a_longer_result_wins_by_the_length_penalty_alone() -> None:
    """Two tokens of -0.5 each compete with one of about -0.9: the sum prefers the one token, the mean prefers the
    two."""
    outcomes = {}
    for length_penalty in (0.0, 1.0):
        search = BeamSearch(2, 5, EOS_ID, length_penalty=length_penalty)
        step_once(search, [np.log([0.394, 0.606, 1e-9]).tolist()])
        if not search.is_done:
            step_once(search, [np.log([0.606, 0.2, 0.194]).tolist()])
        outcomes[length_penalty] = search.results()[0].tokens
    assert outcomes == {0.0: [], 1.0: [1]}


@pytest.mark.parametrize(
    ("length_penalty", "shares", "is_done"),
    [
        # the end token has -0.51, the running row -0.92: the bound is that sum over max_tokens ** penalty
        (0.0, [0.6, 0.4], True),
        (1.0, [0.6, 0.4], False),
        (0.25, [0.6, 0.4], False),  # -0.92 / 20 ** 0.25 = -0.43
        (0.15, [0.6, 0.4], True),  # -0.92 / 20 ** 0.15 = -0.58
        (-1.0, [0.6, 0.4], True),
        (-1.0, [0.2, 0.8], False),  # at the next length -0.22 * 2, against -1.6
        (-1.0, [0.5, 0.5], True),
    ],
)
def test_a_search_ends_when_no_running_row_can_win(length_penalty: float, shares: list[float], is_done: bool) -> None:
    search = BeamSearch(2, 20, EOS_ID, length_penalty=length_penalty)
    assert step_once(search, [np.log(shares).tolist()])[2] is is_done


def test_it_does_not_end_before_there_are_as_many_results_as_are_wanted() -> None:
    search = BeamSearch(3, 20, EOS_ID, length_penalty=0.0, num_best=2)
    assert not step_once(search, [np.log([0.98, 0.01, 0.01]).tolist()])[2]
    assert step_once(search, [np.log([0.98, 0.01, 0.01]).tolist()] * 2)[2]
    assert [each.tokens for each in search.results()] == [[], [1]]


def test_impossible_and_nan_hypotheses_are_dropped() -> None:
    nan, never = float("nan"), -float("inf")
    search = BeamSearch(4, 3, EOS_ID, num_best=4)
    assert step_once(search, [[never, 1.0, 0.5, never]])[:2] == ([0, 0], [1, 2])
    assert step_once(search, [[nan] * 4, [1.0, never, 0.0, never]]) == ([1], [2], False)
    assert step_once(search, [[nan] * 4]) == ([], [], True)
    assert [whole(each) for each in search.results()] == [(2, 0)]


def test_a_model_of_nothing_but_nan_has_no_results() -> None:
    search = BeamSearch(2, 3, EOS_ID)
    assert step_once(search, [[float("nan")] * 3]) == ([], [], True)
    assert search.results() == []


def test_a_stop_token_is_distinguished_from_the_end_token() -> None:
    search = BeamSearch(2, 5, EOS_ID, stop_ids=frozenset({2}), num_best=2)
    assert step_once(search, [[1.0, -9.0, 2.0]]) == ([], [], True)
    assert [(each.end_id, each.finish_reason.value) for each in search.results()] == [(2, "stop"), (0, "eos")]


def test_a_long_search_returns_all_its_tokens() -> None:
    search = BeamSearch(3, 5000, None, num_best=3)
    logits: FloatArray = np.tile(np.array([0.0, 1.0, 0.5], np.float32), (3, 1))
    while not search.is_done:
        search.advance(logits[: search.num_rows])
    assert [len(each.tokens) for each in search.results()] == [5000] * 3


@pytest.mark.parametrize(("beam_size", "max_tokens", "num_best"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 5, 3)])
def test_a_search_that_makes_no_sense_is_refused(beam_size: int, max_tokens: int, num_best: int) -> None:
    with pytest.raises(ValueError, match="num_best"):
        BeamSearch(beam_size, max_tokens, EOS_ID, num_best=num_best)


def test_logits_of_other_rows_than_are_running_are_refused() -> None:
    search = BeamSearch(2, 1, None)
    with pytest.raises(ValueError, match="2 rows for a search of 1"):
        search.advance(np.zeros((2, 3), np.float32))
    search.advance(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="1 rows for a search of 0"):
        search.advance(np.zeros((1, 3), np.float32))

"""Every refusal names the field, its value and what was expected; every value at a limit passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.decoding import Beam, Decoding, Sampling
from service.engine.jobs import OutputKind, OutputSpec
from service.errors import (
    AnswerTooLargeError,
    CarouselError,
    EmptySequenceError,
    InvalidFieldError,
    SequenceTooLongError,
)
from service.sessions.checks import (
    check_batch,
    check_decoding,
    check_length,
    check_outputs,
    check_score,
    check_session_id,
)

VOCABULARY_SIZE = 42


@pytest.mark.parametrize("session_id", ["a", "A-Z.a_z:0-9", "x" * 128, "0", ".", "principal/a"])
def test_a_session_id_may_have_up_to_128_plain_characters(session_id: str) -> None:
    check_session_id(session_id)


@pytest.mark.parametrize(
    ("session_id", "shown"),
    [
        ("", "''"),
        ("a b", "'a b'"),
        ("a\n", "'a\\n'"),
        ("é", "'é'"),
        ("a/b/c", "'a/b/c'"),
        ("/b", "'/b'"),
        ("a:b/c", "'a:b/c'"),
        ("x" * 129, repr("x" * 129)),
        ("y" * 1000, repr("y" * 140 + "...")),
    ],
)
def test_any_other_session_id_is_refused_and_shown_cut(session_id: str, shown: str) -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        check_session_id(session_id)
    expected = f"session_id = {shown} must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
    assert (refusal.value.message, refusal.value.field) == (expected, "session_id")


@given(st.text(st.sampled_from([chr(code) for code in range(0x700)]), max_size=5))  # with letters and digits of others
@settings(max_examples=100, deadline=None)
def test_a_session_id_that_passes_is_plain_ascii(session_id: str) -> None:
    try:
        check_session_id(session_id)
    except InvalidFieldError:
        return
    assert session_id.isascii()
    assert session_id.isprintable()


def test_a_length_within_its_limit_passes() -> None:
    check_length(1, 10, field="feed")
    check_length(10, 10, field="feed")


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(EmptySequenceError) as refusal:
        check_length(0, 10, field="feed")
    assert refusal.value.message == "feed is empty: it must have 1 token or more"
    assert refusal.value.field == "feed"


def test_a_sequence_over_its_limit_is_refused() -> None:
    with pytest.raises(SequenceTooLongError) as refusal:
        check_length(11, 10, field="source", setting="max_source_length")
    assert refusal.value.message == "source has 11 tokens, the limit is 10 (max_source_length)"
    assert refusal.value.field == "source"
    assert refusal.value.facts == {"limit": 10, "max_source_length": 10}


def check(outputs: OutputSpec, *, num_tokens: int = 1, max_bytes: int = 10_000) -> None:
    check_outputs(
        outputs, num_tokens=num_tokens, vocabulary_size=VOCABULARY_SIZE, max_bytes=max_bytes, field="feed.outputs"
    )


@pytest.mark.parametrize("top_k", [0, 43, 2**32 - 1])
def test_top_k_outputs_are_1_to_the_vocabularys_size(top_k: int) -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        check(OutputSpec(OutputKind.TOP_K, top_k))
    assert refusal.value.message == f"feed.outputs.top_k = {top_k} must be 1 to 42, the vocabulary's size"
    assert refusal.value.field == "feed.outputs.top_k"


@pytest.mark.parametrize("top_k", [1, 42])
def test_top_k_outputs_at_a_limit_pass(top_k: int) -> None:
    check(OutputSpec(OutputKind.TOP_K, top_k))


@pytest.mark.parametrize("kind", [kind for kind in OutputKind if kind is not OutputKind.TOP_K])
def test_top_k_goes_with_no_other_kind(kind: OutputKind) -> None:
    check(OutputSpec(kind))
    with pytest.raises(InvalidFieldError) as refusal:
        check(OutputSpec(kind, 3))
    assert refusal.value.message == "feed.outputs.top_k = 3 can be set only with OUTPUT_KIND_TOP_K"
    assert refusal.value.field == "feed.outputs.top_k"


@pytest.mark.parametrize(
    ("outputs", "num_tokens", "total"),
    [
        (OutputSpec(OutputKind.NEXT_TOKEN, every_position=True), 10, 10 * (24 + 32)),
        (OutputSpec(OutputKind.TOP_K, 5, every_position=True), 10, 10 * (24 + 5 * 32)),
        (OutputSpec(OutputKind.LOGITS, every_position=True), 10, 10 * (24 + 42 * 4)),
        (OutputSpec(OutputKind.LOGITS), 10, 24 + 42 * 4),
        (OutputSpec(OutputKind.TOP_K, 42), 1, 24 + 42 * 32),
    ],
)
def test_an_answer_over_the_size_limit_is_refused_before_it_is_computed(
    outputs: OutputSpec, num_tokens: int, total: int
) -> None:
    check(outputs, num_tokens=num_tokens, max_bytes=total)
    with pytest.raises(AnswerTooLargeError) as refusal:
        check(outputs, num_tokens=num_tokens, max_bytes=total - 1)
    assert refusal.value.message == (
        f"feed.outputs requests a response of up to {total} bytes, the limit is {total - 1} (from max_message_bytes):"
        " feed fewer tokens at a time"
    )
    assert refusal.value.field == "feed.outputs"
    assert refusal.value.facts == {"limit": total - 1}
    assert refusal.value.retry_delay_s is None, "the same request never succeeds"


def test_no_outputs_fit_any_limit() -> None:
    check(OutputSpec(OutputKind.NONE, every_position=True), num_tokens=10**6, max_bytes=0)


def refusal_of(decoding: Decoding) -> CarouselError:
    with pytest.raises(InvalidFieldError) as refusal:
        check_decoding(
            decoding, vocabulary_size=VOCABULARY_SIZE, max_tokens=100, max_beam_size=8, field="generate.decoding"
        )
    return refusal.value


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(1),
        Decoding(100),
        Decoding(1, Sampling()),
        Decoding(1, Sampling(temperature=100.0, top_k=42, top_p=1.0, seed=2**64 - 1)),
        Decoding(1, Sampling(temperature=1e-40, top_k=1, top_p=1e-40)),
    ],
)
def test_a_decoding_within_its_ranges_passes(decoding: Decoding) -> None:
    check_decoding(
        decoding, vocabulary_size=VOCABULARY_SIZE, max_tokens=100, max_beam_size=8, field="generate.decoding"
    )


@pytest.mark.parametrize("max_tokens", [0, 101])
def test_max_tokens_is_1_to_the_servers_limit(max_tokens: int) -> None:
    error = refusal_of(Decoding(max_tokens))
    assert error.message == f"generate.decoding.max_tokens = {max_tokens} must be 1 to 100 (max_generate_tokens)"
    assert error.field == "generate.decoding.max_tokens"


@pytest.mark.parametrize(
    ("temperature", "shown"), [(0.0, "0"), (-1.0, "-1"), (100.5, "100.5"), (math.inf, "inf"), (math.nan, "nan")]
)
def test_temperature_is_above_0_and_at_most_100(temperature: float, shown: str) -> None:
    error = refusal_of(Decoding(1, Sampling(temperature=temperature)))
    assert error.message == f"generate.decoding.sampling.temperature = {shown} must be above 0 and at most 100"
    assert error.field == "generate.decoding.sampling.temperature"


@pytest.mark.parametrize("top_k", [0, 43])
def test_sampling_top_k_is_1_to_the_vocabularys_size(top_k: int) -> None:
    error = refusal_of(Decoding(1, Sampling(top_k=top_k)))
    assert error.message == f"generate.decoding.sampling.top_k = {top_k} must be 1 to 42, the vocabulary's size"
    assert error.field == "generate.decoding.sampling.top_k"


@pytest.mark.parametrize(
    ("top_p", "shown"), [(0.0, "0"), (-0.5, "-0.5"), (1.5, "1.5"), (math.inf, "inf"), (math.nan, "nan")]
)
def test_top_p_is_above_0_and_at_most_1(top_p: float, shown: str) -> None:
    error = refusal_of(Decoding(1, Sampling(top_p=top_p)))
    assert error.message == f"generate.decoding.sampling.top_p = {shown} must be above 0 and at most 1"
    assert error.field == "generate.decoding.sampling.top_p"


def searching(*, num_best: int, max_tokens: int, max_answer_bytes: int) -> None:
    """Checks a search with this many results."""
    check_decoding(
        Decoding(max_tokens, beam=Beam(64, num_best=num_best)),
        vocabulary_size=VOCABULARY_SIZE,
        max_tokens=65_536,
        max_beam_size=64,
        field="generate.decoding",
        max_answer_bytes=max_answer_bytes,
        token_bytes=20,
    )


def test_results_times_tokens_of_a_search_are_bounded_by_the_answer() -> None:
    searching(num_best=3, max_tokens=10, max_answer_bytes=4 * (48 + 200))
    with pytest.raises(AnswerTooLargeError, match=r"^generate\.decoding\.beam_search requests a response of up to 992"):
        searching(num_best=3, max_tokens=10, max_answer_bytes=4 * (48 + 200) - 1)
    with pytest.raises(AnswerTooLargeError):
        searching(num_best=64, max_tokens=65_536, max_answer_bytes=4 * 1024 * 1024)


def test_scores_and_positions_of_many_are_bounded_by_the_answer() -> None:
    check_score([[1, 2, 3]] * 10, max_answer_bytes=10 * (48 + 16), field="score.targets")
    with pytest.raises(AnswerTooLargeError):
        check_score([[1, 2, 3]] * 10, max_answer_bytes=10 * (48 + 16) - 1, field="score.targets")
    check_batch(100, max_answer_bytes=9000, field="step_batch.handles")
    with pytest.raises(AnswerTooLargeError):
        check_batch(101, max_answer_bytes=9000, field="step_batch.handles")

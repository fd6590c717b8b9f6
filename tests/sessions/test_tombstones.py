"""A client that asks for an ended session learns why it ended, as long as its tombstone exists."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.sessions.session import CloseReason
from service.sessions.tombstones import ClosingAnswer, Tombstone, Tombstones

AT = 1_700_000_000.25
TOLD = {
    CloseReason.CLIENT: "was closed by a client",
    CloseReason.DISCONNECT: "was closed when its stream or call ended, as its on_disconnect says",
    CloseReason.IDLE: "was closed because it was idle for too long",
    CloseReason.SHUTDOWN: "was closed because the server shut down",
    CloseReason.FAILED: "was closed because opening it failed",
    CloseReason.EXPIRED: "expired: it was not resumed or used in time",
    CloseReason.MOVED: "has moved to another server",
    CloseReason.TAKEN: "was taken over by another stream",
    CloseReason.LOST: "was lost: its server stopped before it was stored, or the store no longer has its record",
    CloseReason.MAX_AGE: "was closed because it reached the age that the server allows (max_age_s)",
}


@pytest.mark.parametrize("reason", CloseReason)
def test_the_error_for_a_closed_session_has_its_reason_position_and_time(reason: CloseReason) -> None:
    tombstones = Tombstones(10, 1000)
    tombstones.add("s1", Tombstone(reason, 7, AT))
    error = tombstones.not_found("s1")
    assert error.message == (f"session_id = 's1' is gone: it {TOLD[reason]} at position 7, 2023-11-14T22:13:20+00:00")
    assert error.field == "session_id"
    assert error.facts == {"session_id": "s1", "close_reason": reason.value, "position": 7}


def test_the_error_for_a_session_that_was_lost_before_its_first_write_has_no_position() -> None:
    tombstones = Tombstones(10, 1000)
    tombstones.add("s1", Tombstone(CloseReason.LOST, 0, AT))
    error = tombstones.not_found("s1")
    assert error.message == f"session_id = 's1' is gone: it {TOLD[CloseReason.LOST]}, 2023-11-14T22:13:20+00:00"
    assert error.facts == {"session_id": "s1", "close_reason": "lost"}


def test_the_error_for_a_session_that_never_existed_says_unknown() -> None:
    error = Tombstones(10, 1000).not_found("s1")
    assert error.message == "session_id = 's1' is unknown: it was never opened here, or ended long ago"
    assert error.field == "session_id"
    assert error.facts == {"session_id": "s1"}


def test_the_error_for_an_id_that_was_closed_twice_has_its_last_end() -> None:
    """The id also counts as the last one that was closed, so another id is forgotten first."""
    tombstones = Tombstones(2, 1000)
    tombstones.add("s1", Tombstone(CloseReason.IDLE, 1, AT))
    tombstones.add("s2", Tombstone(CloseReason.IDLE, 2, AT))
    tombstones.add("s1", Tombstone(CloseReason.CLIENT, 9, AT + 60))
    assert len(tombstones) == 2
    tombstones.add("s3", Tombstone(CloseReason.IDLE, 3, AT))
    assert tombstones.not_found("s1").facts["position"] == 9
    assert "22:14:20" in tombstones.not_found("s1").message
    assert "is unknown" in tombstones.not_found("s2").message


@given(st.integers(0, 5), st.lists(st.sampled_from("abcdefgh"), max_size=30))
@settings(max_examples=50, deadline=None)
def test_just_the_last_ones_closed_are_remembered(capacity: int, closed: list[str]) -> None:
    tombstones = Tombstones(capacity, 1000)
    for position, session_id in enumerate(closed):
        tombstones.add(session_id, Tombstone(CloseReason.IDLE, position, AT))
        assert len(tombstones) <= capacity
    latest = {session_id: position for position, session_id in enumerate(closed)}
    kept = sorted(latest, key=lambda session_id: latest[session_id])[max(0, len(latest) - capacity) :]
    for session_id in "abcdefgh":
        expected = latest[session_id] if session_id in kept else None
        assert tombstones.not_found(session_id).facts.get("position") == expected


def test_the_answer_of_a_closing_call_is_kept_as_long_as_its_tombstone() -> None:
    tombstones = Tombstones(2, 10_000)
    for session_id in ("s1", "s2"):
        tombstones.add(session_id, Tombstone(CloseReason.CLIENT, 1, AT))
        tombstones.keep_answer(session_id, ClosingAnswer(b"request", session_id.encode()))
    assert tombstones.answer_again("s1", b"request") == b"s1"
    assert tombstones.answer_again("s1", b"another") is None
    assert tombstones.answer_again("s3", b"request") is None
    tombstones.add("s1", Tombstone(CloseReason.FAILED, 0, AT))
    assert tombstones.answer_again("s1", b"request") == b"s1", "a session that could not be opened changes nothing"
    tombstones.add("s1", Tombstone(CloseReason.IDLE, 1, AT))
    assert tombstones.answer_again("s1", b"request") is None, "a later session with this id ended in another way"
    tombstones.add("s3", Tombstone(CloseReason.IDLE, 1, AT))
    assert tombstones.answer_again("s2", b"request") is None


def test_the_latest_answers_of_closing_calls_are_kept_up_to_the_limit() -> None:
    tombstones = Tombstones(10, 10_000)
    for number in range(5):
        tombstones.add(f"s{number}", Tombstone(CloseReason.CLIENT, 1, AT))
        tombstones.keep_answer(f"s{number}", ClosingAnswer(b"request", bytes(4000)))
    assert [tombstones.answer_again(f"s{number}", b"request") is not None for number in range(5)] == [
        *([False] * 3),
        *([True] * 2),
    ]
    assert tombstones.not_found("s0").facts["position"] == 1


def test_nothing_is_kept_of_a_closing_call_without_a_tombstone() -> None:
    tombstones = Tombstones(0, 10_000)
    tombstones.add("s1", Tombstone(CloseReason.CLIENT, 1, AT))
    tombstones.keep_answer("s1", ClosingAnswer(b"request", b"response"))
    assert tombstones.answer_again("s1", b"request") is None

"""What may happen to a session, and when, is exactly what the table says."""

from __future__ import annotations

import itertools

import pytest

from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import Encoded, Failed, Fed
from service.errors import EngineError, IllegalRequestError
from service.sessions.session import TRANSITIONS, Event, LastFeed, Request, State, diagram
from tests import domain

PAIRS = list(itertools.product(State, Event))
ALLOWED = {
    (State.IDLE, Event.FEED): State.BUSY,
    (State.IDLE, Event.GENERATE): State.GENERATING,
    (State.IDLE, Event.SCORE): State.BUSY,
    (State.IDLE, Event.CLOSE): State.CLOSED,
    (State.BUSY, Event.FEED): State.BUSY,
    (State.BUSY, Event.SCORE): State.BUSY,
    (State.BUSY, Event.GENERATE): State.GENERATING,
    (State.BUSY, Event.FINISH): State.IDLE,
    (State.BUSY, Event.CLOSE): State.CLOSED,
    (State.GENERATING, Event.FINISH): State.IDLE,
    (State.GENERATING, Event.CLOSE): State.CLOSED,
}


def test_the_table_is_the_one_that_was_agreed_upon() -> None:
    assert TRANSITIONS == ALLOWED


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair in ALLOWED])
def test_an_event_in_the_table_leads_where_it_says(state: State, event: Event) -> None:
    """And asking where it leads does not go there."""
    session = domain.session(state=state)
    assert session.after(event) is ALLOWED[state, event]
    assert session.state is state


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in ALLOWED])
def test_an_event_that_is_not_in_the_table_is_refused_and_changes_nothing(state: State, event: Event) -> None:
    session = domain.session("s7", state=state, position=5, num_in_flight=2)
    with pytest.raises(IllegalRequestError) as refusal:
        session.after(event)
    advice = ": wait for its end, or cancel it" if state is State.GENERATING else ""
    assert refusal.value.message == f"{event.value}: session 's7' is {state.value} at position 5{advice}"
    assert refusal.value.facts == {"session_id": "s7", "state": state.value}
    assert (session.state, session.position, session.num_in_flight) == (state, 5, 2)


def test_a_session_is_idle_again_when_its_last_request_has_ended() -> None:
    session = domain.session(state=State.BUSY, num_in_flight=2)
    session.ended(Fed(3, []))
    assert (session.state, session.position, session.num_in_flight) == (State.BUSY, 3, 1)
    session.ended(Failed(4, EngineError("failed")))
    assert (session.state, session.position, session.num_in_flight) == (State.IDLE, 4, 0)


def test_a_closed_session_stays_closed_when_its_requests_end() -> None:
    session = domain.session(state=State.CLOSED, num_in_flight=1)
    session.ended(Encoded(2))
    assert (session.state, session.position, session.num_in_flight) == (State.CLOSED, 2, 0)


def test_the_diagram_lists_every_transition_and_no_other() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    drawn = [line.strip() for line in lines[1:]]
    expected = {f"{state.value} --> {after.value}: {event.value}" for (state, event), after in ALLOWED.items()}
    assert sorted(drawn) == sorted({"[*] --> idle: open", "closed --> [*]", *expected})


def test_a_feed_is_repeated_by_the_same_position_tokens_and_outputs_alone() -> None:
    request = Request(domain.session(), 1, lambda request, result: None, 0.0)
    last = LastFeed(request, 4, [1, 2], OutputSpec())
    assert last.is_repeated_by(4, [1, 2], OutputSpec())
    assert not last.is_repeated_by(5, [1, 2], OutputSpec())
    assert not last.is_repeated_by(4, [1, 3], OutputSpec())
    assert not last.is_repeated_by(4, [1, 2], OutputSpec(OutputKind.LOGITS))
    last.result = Fed(6, [])
    assert last.is_repeated_by(4, [1, 2], OutputSpec())


def test_a_feed_that_failed_is_not_there_to_be_repeated() -> None:
    request = Request(domain.session(), 1, lambda request, result: None, 0.0)
    last = LastFeed(request, 4, [1, 2], OutputSpec())
    last.result = Failed(4, EngineError("failed"))
    assert not last.is_repeated_by(4, [1, 2], OutputSpec())

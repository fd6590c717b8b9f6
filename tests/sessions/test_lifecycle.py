"""A session accepts exactly the events that the table has for its state."""

from __future__ import annotations

import itertools

import pytest

from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import Encoded, Failed, Fed
from service.errors import EngineError, IllegalRequestError
from service.sessions.generation import LastFeed
from service.sessions.lifecycle import LIVE, OVER, TABLE, Action, Event, State
from service.sessions.request import Request
from tests import domain
from tests.session_diagram import diagram

PAIRS = list(itertools.product(State, Event))
REQUESTS = (Event.FEED, Event.STEP_BATCH, Event.SCORE, Event.GENERATE)
ENDS = (Event.CLOSE, Event.EXPIRE, Event.HAND_OVER, Event.LOSE)
WAITING = (State.OPENING, State.SPILLING, State.SPILLED, State.RESTORING)


def test_every_state_can_be_reached_and_left() -> None:
    reached, work = {State.OPENING}, [State.OPENING]
    while work:
        state = work.pop()
        following = {transition.state for (source, _), transition in TABLE.items() if source is state}
        work += following - reached
        reached |= following
    assert reached == set(State)
    assert {state for state, _ in TABLE} == set(State) - {State.ENDED}


@pytest.mark.parametrize("state", [state for state in State if state not in OVER])
@pytest.mark.parametrize("event", ENDS)
def test_whatever_a_session_does_it_can_end_and_everything_is_answered(state: State, event: Event) -> None:
    """Deferred requests are refused, the slot is freed with all work in flight, and the stream is notified."""
    transition = TABLE[state, event]
    assert transition.state in OVER
    assert {Action.REFUSE_DEFERRED, Action.FREE_SLOT, Action.NOTIFY_STREAM} <= set(transition.actions)


@pytest.mark.parametrize("state", WAITING)
@pytest.mark.parametrize("event", [*REQUESTS, Event.READ, Event.REWIND, Event.SET_STATE])
def test_a_request_for_a_session_without_a_slot_waits(state: State, event: Event) -> None:
    assert TABLE[state, event].actions == (Action.DEFER,)


@pytest.mark.parametrize(("state", "event"), [(s, e) for s, e in TABLE if Action.SUBMIT in TABLE[s, e].actions])
def test_only_a_session_with_a_slot_gives_work_to_the_engine(state: State, event: Event) -> None:
    assert state in LIVE
    assert TABLE[state, event].state in (State.BUSY, State.GENERATING)
    assert event in REQUESTS


def test_a_session_that_has_ended_does_nothing_any_more() -> None:
    assert {event for state, event in TABLE if state in OVER} == {Event.RECORD}


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TABLE])
def test_an_event_that_is_not_in_the_table_is_refused_and_changes_nothing(state: State, event: Event) -> None:
    session = domain.session("s7", state=state, position=5, num_in_flight=2)
    with pytest.raises(IllegalRequestError) as refusal:
        session.transition_for(event)
    advice = ": wait for its end, or cancel it" if state is State.GENERATING else ""
    assert refusal.value.message == f"{event.value}: session 's7' is {state.value} at position 5{advice}"
    assert refusal.value.facts == {"session_id": "s7", "state": state.value}
    assert (session.state, session.position, session.num_in_flight) == (state, 5, 2)


def test_a_session_is_idle_again_when_its_last_request_has_ended() -> None:
    session = domain.session(state=State.BUSY, num_in_flight=2)
    session.request_done(Fed(3, []))
    assert (session.state, session.position, session.num_in_flight) == (State.BUSY, 3, 1)
    session.request_done(Failed(4, EngineError("failed")))
    assert (session.state, session.position, session.num_in_flight) == (State.IDLE, 4, 0)


def test_a_session_that_has_ended_stays_so_when_its_requests_end() -> None:
    session = domain.session(state=State.ENDING, num_in_flight=1)
    session.request_done(Encoded(2))
    assert (session.state, session.position, session.num_in_flight) == (State.ENDING, 2, 0)


def test_the_diagram_draws_what_changes_a_state() -> None:
    drawn = [line.strip() for line in diagram().splitlines()]
    assert drawn[0] == "stateDiagram-v2"
    assert "idle --> busy: feed, step_batch, score" in drawn
    assert "spilling --> spilled: stored" in drawn
    assert "open --> ending: close, expire, hand_over" in drawn
    assert "open --> ended: lose" in drawn
    arrows = {tuple(line.partition(":")[0].split(" --> ")) for line in drawn if " --> " in line}
    for (state, _), transition in TABLE.items():
        if transition.state is not state:
            source = "open" if transition.state in OVER and state not in OVER else state.value
            assert (source, transition.state.value) in arrows or state is State.OPENING


def test_a_request_is_answered_once_by_its_last_answer() -> None:
    answers: list[object] = []
    request = Request(domain.session(), 1, lambda request, result: answers.append(result), 0.0)
    request.deliver(Fed(1, []))
    request.deliver(Failed(1, EngineError("again")))
    assert answers == [Fed(1, [])]


def test_a_feed_is_repeated_by_the_same_position_tokens_outputs_and_mark_alone() -> None:
    request = Request(domain.session(), 1, lambda request, result: None, 0.0)
    last = LastFeed(request, 4, [1, 2], OutputSpec())
    assert last.is_repeated_by(4, [1, 2], OutputSpec(), has_mark=False)
    assert not last.is_repeated_by(5, [1, 2], OutputSpec(), has_mark=False)
    assert not last.is_repeated_by(4, [1, 3], OutputSpec(), has_mark=False)
    assert not last.is_repeated_by(4, [1, 2], OutputSpec(OutputKind.LOGITS), has_mark=False)
    assert not last.is_repeated_by(4, [1, 2], OutputSpec(), has_mark=True)
    last.result = Fed(6, [])
    assert last.is_repeated_by(4, [1, 2], OutputSpec(), has_mark=False)


def test_a_feed_that_failed_cannot_be_retried() -> None:
    request = Request(domain.session(), 1, lambda request, result: None, 0.0)
    last = LastFeed(request, 4, [1, 2], OutputSpec())
    last.result = Failed(4, EngineError("failed"))
    assert not last.is_repeated_by(4, [1, 2], OutputSpec(), has_mark=False)


def test_plain_sessions_share_what_is_known_of_their_records_and_cannot_change_it() -> None:
    first, second = domain.session("a"), domain.session("b")
    assert first.persistence is second.persistence
    with pytest.raises(AttributeError, match="all plain sessions share this"):
        first.persistence.era = 1
    first.own_persistence().era = 1
    assert (first.persistence.era, second.persistence.era) == (1, 0)

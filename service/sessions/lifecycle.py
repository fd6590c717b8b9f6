"""The life of a session: which event may happen in which state, where it leads, and what the server then does.

Pure: no clock, no I/O, no asyncio, no engine. `TABLE` is the only place that says what is legal; `Registry`, `Spill`
and `Requests` carry its actions out and report back by further events. docs/architecture.md has the diagram that
`diagram` draws. Rules:

1. A session has its id from OPENING until ENDED. Nobody else can take the id meanwhile.
2. Only IDLE, BUSY and GENERATING have a slot of the engine. A request in any other state before ENDING is deferred:
   it waits, in order, until the session has a slot again.
3. Every request is answered once: by the engine, or by REFUSE_DEFERRED and FREE_SLOT when the session ends or cannot
   be restored.
4. ENDING lasts until the store has the last record of the session (`BURY`, `RELEASE`); without a record it ends at
   once.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """Where a session is in its life."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    OPENING = "opening"
    IDLE = "idle"
    BUSY = "busy"
    GENERATING = "generating"
    SPILLING = "spilling"
    SPILLED = "spilled"
    RESTORING = "restoring"
    ENDING = "ending"
    ENDED = "ended"


class Event(Enum):
    """What can happen to a session."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    START = "start"  # it got its id and its slot
    FAIL = "fail"  # it cannot be opened
    FEED = "feed"
    STEP_BATCH = "step_batch"
    SCORE = "score"
    GENERATE = "generate"
    FINISH = "finish"  # the last request in flight was answered
    CANCEL = "cancel"
    READ = "read"  # snapshot, fork, get_state
    REWIND = "rewind"
    SET_STATE = "set_state"
    RESUME = "resume"  # a stream takes it
    DETACH = "detach"  # its stream ended, and it is held
    SPILL = "spill"  # another session needs its slot
    STORED = "stored"  # its state is in the store
    NOT_STORED = "not_stored"  # the store failed
    RESTORE = "restore"  # a request waits for it
    RESTORED = "restored"
    NOT_RESTORED = "not_restored"
    CLOSE = "close"  # by the client, by the end of its stream, by idleness, by age, by the end of the server
    EXPIRE = "expire"  # nobody resumed it in time
    HAND_OVER = "hand_over"  # another server, or a later one, may have it
    LOSE = "lose"  # another server has it already
    RECORD = "record"  # the store has its last record, or there is none to write


class Action(Enum):
    """What the server does after an event."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    SUBMIT = "submit"  # give the request to the engine
    DEFER = "defer"  # keep the request until the session has a slot
    RUN_DEFERRED = "run deferred requests"
    REFUSE_DEFERRED = "refuse deferred requests"
    CANCEL_JOBS = "cancel jobs"
    READ_STATE = "read state"
    WRITE_STATE = "write state"
    TELL_STREAM = "tell the stream that had it"
    HOLD = "hold until a time"
    STORE = "store"
    FREE_SLOT = "free the slot"  # and answer what is in flight
    READ_RECORD = "read the record"
    BURY = "record the end"
    RELEASE = "record that it is free"
    FREE_ID = "free the id"


class Transition(NamedTuple):
    """The state that follows, and what is done, in order."""

    state: State
    actions: tuple[Action, ...] = ()


LIVE = frozenset({State.IDLE, State.BUSY, State.GENERATING})
"""The states with a slot that requests can use."""
HOLDS_SLOT = LIVE | {State.SPILLING}
"""Those whose state is in a slot: also of a session that is being stored, to give it up."""
OVER = frozenset({State.ENDING, State.ENDED})
_WAITING = (State.OPENING, State.SPILLING, State.SPILLED, State.RESTORING)
_BEFORE_END = (*_WAITING, State.IDLE, State.BUSY, State.GENERATING)
_REQUESTS = (Event.FEED, Event.STEP_BATCH, Event.SCORE, Event.GENERATE, Event.READ, Event.REWIND, Event.SET_STATE)


def _table() -> dict[tuple[State, Event], Transition]:
    table: dict[tuple[State, Event], Transition] = {
        (State.OPENING, Event.START): Transition(State.IDLE, (Action.RUN_DEFERRED,)),
        (State.OPENING, Event.FAIL): Transition(State.ENDING, (Action.REFUSE_DEFERRED, Action.BURY)),
        (State.IDLE, Event.GENERATE): Transition(State.GENERATING, (Action.SUBMIT,)),
        (State.BUSY, Event.GENERATE): Transition(State.GENERATING, (Action.SUBMIT,)),
        (State.BUSY, Event.FINISH): Transition(State.IDLE),
        (State.GENERATING, Event.FINISH): Transition(State.IDLE),
        (State.IDLE, Event.REWIND): Transition(State.IDLE, (Action.WRITE_STATE, Action.STORE)),
        (State.IDLE, Event.SET_STATE): Transition(State.IDLE, (Action.WRITE_STATE, Action.STORE)),
        (State.IDLE, Event.SPILL): Transition(State.SPILLING, (Action.STORE,)),
        (State.SPILLING, Event.STORED): Transition(State.SPILLED, (Action.FREE_SLOT,)),
        (State.SPILLING, Event.NOT_STORED): Transition(State.IDLE, (Action.RUN_DEFERRED,)),
        (State.SPILLED, Event.RESTORE): Transition(State.RESTORING, (Action.READ_RECORD,)),
        (State.RESTORING, Event.RESTORED): Transition(State.IDLE, (Action.RUN_DEFERRED,)),
        (State.RESTORING, Event.NOT_RESTORED): Transition(State.SPILLED, (Action.REFUSE_DEFERRED,)),
        (State.ENDING, Event.RECORD): Transition(State.ENDED, (Action.FREE_ID,)),
    }
    for state in (State.IDLE, State.BUSY):
        for event in (Event.FEED, Event.STEP_BATCH, Event.SCORE):
            table[state, event] = Transition(State.BUSY, (Action.SUBMIT,))
    for state in LIVE:
        table[state, Event.READ] = Transition(state, (Action.READ_STATE,))
        table[state, Event.CANCEL] = Transition(state, (Action.REFUSE_DEFERRED, Action.CANCEL_JOBS))
    for state in _WAITING:
        table[state, Event.CANCEL] = Transition(state, (Action.REFUSE_DEFERRED,))
        for event in _REQUESTS:
            table[state, event] = Transition(state, (Action.DEFER,))
    for state in _BEFORE_END:
        table[state, Event.RESUME] = Transition(state, (Action.TELL_STREAM,))
        table[state, Event.DETACH] = Transition(state, (Action.HOLD,))
        end = (Action.REFUSE_DEFERRED, Action.FREE_SLOT)
        table[state, Event.CLOSE] = Transition(State.ENDING, (*end, Action.BURY, Action.TELL_STREAM))
        table[state, Event.EXPIRE] = Transition(State.ENDING, (*end, Action.BURY, Action.TELL_STREAM))
        table[state, Event.HAND_OVER] = Transition(State.ENDING, (Action.RELEASE, *end, Action.TELL_STREAM))
        table[state, Event.LOSE] = Transition(State.ENDED, (*end, Action.TELL_STREAM))
    return table


TABLE = _table()
"""(state, event) to the transition. What is not here is illegal."""


def diagram() -> str:
    """The table as a Mermaid state diagram. An event that changes no state and only defers, reads or takes over is left
    out: it is legal in every state before ENDING. The end is drawn from one state for all that it can come from."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), transition in TABLE.items():
        is_quiet = transition.state is state and transition.actions[:1] != (Action.SUBMIT,)
        if is_quiet and Action.WRITE_STATE not in transition.actions:
            continue
        source = (
            "open" if transition.state in OVER and state in _BEFORE_END and event is not Event.FAIL else state.value
        )
        names = arrows.setdefault((source, transition.state.value), [])
        if event.value not in names:
            names.append(event.value)
    inside = [state.value for state in _BEFORE_END]
    lines = ["stateDiagram-v2", "    [*] --> opening", "    state open {"]
    lines += [f"        {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items() if {a, b} <= {*inside}]
    lines += ["    }"]
    lines += [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items() if not {a, b} <= {*inside}]
    return "\n".join([*lines, "    ended --> [*]"])

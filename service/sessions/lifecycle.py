"""The life of a session, as one table: (state, event) to (next state, actions of the server).

This module is pure: it knows no clock, no I/O, no asyncio and no engine. Only `TABLE` says which events are legal.
`Opening`, `Registry`, `Spill` and the classes of requests (`Requests`, `Generations`, `StepBatches`, `Admin`) carry
out the actions and report the results as further events. `diagram` draws the table for docs/architecture.md. Rules:

1. A session owns its id from OPENING until ENDING. During ENDING a new session can get the id, but an opening with a
   chosen id, and a resume, wait until the earlier session is ENDED.
2. Only a session in IDLE, BUSY or GENERATING has a slot that requests can use. A request in any other state before
   ENDING is deferred: it waits, in order, until the session has a slot again. A request of an unconfirmed session (see
   `leases`) is deferred in every state.
3. Every accepted request gets exactly one last answer: from the engine; from memory, when it is a retry; or by
   REFUSE_DEFERRED or FREE_SLOT, for example when its session ends. Only a generation that lost its stream has no
   request to answer.
4. ENDING lasts until all requests in flight are answered and the store has the last record of the session
   (`RECORD_END`, `RELEASE`). Without a record, only the requests in flight are waited for. LOSE skips ENDING.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """The state of a session."""

    __hash__ = object.__hash__  # members are singletons; Enum.__hash__ hashes the name, in Python

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
    """An event in the life of a session."""

    __hash__ = object.__hash__  # members are singletons; Enum.__hash__ hashes the name, in Python

    START = "start"  # the session has its id and a slot
    FAIL = "fail"  # the session cannot be opened
    FEED = "feed"
    STEP_BATCH = "step_batch"
    SCORE = "score"
    GENERATE = "generate"
    FINISH = "finish"  # the last request in flight was answered
    CANCEL = "cancel"
    READ = "read"  # a request reads the state: snapshot, fork, get_state
    REWIND = "rewind"
    SET_STATE = "set_state"
    RESUME = "resume"  # a stream resumes the session
    DETACH = "detach"  # the stream ended, and the policy keeps the session
    SPILL = "spill"  # another session needs the slot
    STORED = "stored"  # the store has the session's state
    NOT_STORED = "not_stored"  # the store failed
    RESTORE = "restore"  # a request needs the spilled session
    RESTORED = "restored"
    NOT_RESTORED = "not_restored"
    CLOSE = "close"  # ended by the client, the end of its stream, idleness, age or shutdown
    EXPIRE = "expire"  # no stream resumed the session in time
    HAND_OVER = "hand_over"  # the session is stored for another server, or a later start of this one
    LOSE = "lose"  # another server owns the session already
    RECORD = "record"  # the store has the last record, or there is none to write


class Action(Enum):
    """An action of the server after an event."""

    __hash__ = object.__hash__  # members are singletons; Enum.__hash__ hashes the name, in Python

    SUBMIT = "submit"  # give the request to the engine
    DEFER = "defer"  # keep the request until the session has a slot
    RUN_DEFERRED = "run deferred requests"
    REFUSE_DEFERRED = "refuse deferred requests"
    CANCEL_JOBS = "cancel jobs"
    READ_STATE = "read state"
    WRITE_STATE = "write state"
    NOTIFY_STREAM = "notify the stream that had it"
    HOLD = "hold until a time"
    STORE = "store"
    FREE_SLOT = "free the slot"  # also answers the requests in flight
    READ_RECORD = "read the record"
    RECORD_END = "record the end"
    RELEASE = "record that it is free"
    FREE_ID = "free the id"


class Transition(NamedTuple):
    """The next state, and the actions in their order."""

    state: State
    actions: tuple[Action, ...] = ()


LIVE = frozenset({State.IDLE, State.BUSY, State.GENERATING})
"""The states with a slot that requests can use."""
HOLDS_SLOT = LIVE | {State.SPILLING}
"""The states with a slot. In SPILLING the session still has its slot, but requests cannot use it."""
OVER = frozenset({State.ENDING, State.ENDED})
_WAITING = (State.OPENING, State.SPILLING, State.SPILLED, State.RESTORING)
_BEFORE_END = (*_WAITING, State.IDLE, State.BUSY, State.GENERATING)
_REQUESTS = (Event.FEED, Event.STEP_BATCH, Event.SCORE, Event.GENERATE, Event.READ, Event.REWIND, Event.SET_STATE)


def _table() -> dict[tuple[State, Event], Transition]:
    table: dict[tuple[State, Event], Transition] = {
        (State.OPENING, Event.START): Transition(State.IDLE, (Action.RUN_DEFERRED,)),
        (State.OPENING, Event.FAIL): Transition(State.ENDING, (Action.REFUSE_DEFERRED, Action.RECORD_END)),
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
        table[state, Event.RESUME] = Transition(state, (Action.NOTIFY_STREAM,))
        table[state, Event.DETACH] = Transition(state, (Action.HOLD,))
        end = (Action.REFUSE_DEFERRED, Action.FREE_SLOT)
        table[state, Event.CLOSE] = Transition(State.ENDING, (*end, Action.RECORD_END, Action.NOTIFY_STREAM))
        table[state, Event.EXPIRE] = Transition(State.ENDING, (*end, Action.RECORD_END, Action.NOTIFY_STREAM))
        table[state, Event.HAND_OVER] = Transition(State.ENDING, (Action.RELEASE, *end, Action.NOTIFY_STREAM))
        table[state, Event.LOSE] = Transition(State.ENDED, (*end, Action.NOTIFY_STREAM))
    return table


TABLE = _table()
"""(state, event) to transition. An event that has no entry is illegal."""

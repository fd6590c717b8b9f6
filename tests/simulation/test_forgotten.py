"""The store has lost the record of a session that its server still has.

Another server opens a second session with the same id, and the client may get responses from either. Hand-written
scripts test what the client then believes.
"""

from __future__ import annotations

from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from simulation.bundles import LAZY, PROMPT
from simulation.knobs import Knobs
from simulation.run import run_script
from simulation.script import NATURE, Action
from simulation.store import SimulatedStore

PAUSE_S = 0.1
"""Virtual seconds: enough to carry out a request and to answer it."""


def do(op: str, *, k: int = 1, slot: int = 1, pause_s: float = PAUSE_S, **args: Any) -> Action:
    """Returns an action of the client on its session `k`, on the replica `slot`."""
    return Action(0, op, pause_s, {"k": k, "slot": slot, **args})


def opening(model: str, durability: pb.Durability.ValueType, *, k: int = 1, slot: int = 1) -> Action:
    """Returns an opening of a session that is held when its stream ends. It is sent even if the client has a session
    with that id."""
    policy: dict[str, Any] = {"durability": durability, "action": pb.DISCONNECT_ACTION_HOLD, "duration_s": 0.0}
    others: dict[str, Any] = {"is_made": False, "outputs": False, "unattended": False, "rude": True}
    return do("open", k=k, slot=slot, model=model, **policy, **others)


FIRST = [opening(LAZY, pb.DURABILITY_STRICT, slot=0), do("leave", slot=0)]
LOSS = Action(NATURE, "evict", 0.0, {"duration_s": 0.0, "replica": 0})
"""Evicts each record of the store with probability 1/2."""
LOSSES = [LOSS._replace(pause_s=1.5 * PAUSE_S), *[LOSS] * 8]
OTHER = opening(PROMPT, pb.DURABILITY_NONE, k=0)
"""An opening with another id. It creates the stream on which the second session is opened."""
SECOND = opening(PROMPT, pb.DURABILITY_NONE)
UNREAD, READ_LATE = do("reading", is_on=False), do("reading", is_on=True, pause_s=2.1)
FEED = do("feed", tokens=[3, 5], with_position=False, mark=False, kind=pb.OUTPUT_KIND_LOGITS, size=1)
KNOBS = Knobs(idle_timeout_s=0.6)


@pytest.mark.parametrize(
    "then",
    [
        [OTHER, SECOND, do("close"), do("resume", slot=0)],
        [OTHER, UNREAD, SECOND, do("leave"), do("resume")],
        [OTHER, UNREAD, SECOND, READ_LATE, do("resume", slot=0)],
        [OTHER, UNREAD, do("resume"), READ_LATE, do("resume", slot=0)],
    ],
    ids=["closed", "opening not heard of", "opening heard of late", "not found, heard of late"],
)
def test_either_session_may_answer_once_the_store_has_lost_the_first(then: list[Action]) -> None:
    journal = run_script(0, [*FIRST, *LOSSES, *then, FEED], KNOBS)
    trace = "\n".join(journal.trace)
    assert not journal.violations, trace
    assert "the store has lost 'c0s1'" in trace, trace
    assert '"c0s1" position: 2 fed' in trace, trace


def test_a_second_session_of_an_id_that_the_store_has_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedStore, "has", lambda self, session_id: False)
    journal = run_script(0, [*FIRST, OTHER, SECOND], KNOBS)
    assert any("gets the id of a stored session" in violation for violation in journal.violations)

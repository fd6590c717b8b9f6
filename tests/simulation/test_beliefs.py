"""What a simulated client knows of its sessions after a refused opening: exactly what the server promised."""

from __future__ import annotations

from typing import Any

from carousel.v1 import inference_pb2 as pb
from simulation.checks import Journal
from simulation.knobs import Knobs
from simulation.run import run_script
from simulation.script import NATURE, Action
from tests.simulation.scenes import NONE, STRICT

FREE, HOLD = pb.DISCONNECT_ACTION_FREE, pb.DISCONNECT_ACTION_HOLD
_PAST_LEASE_S = 1.5
KNOBS = Knobs(idle_timeout_s=20.0)
CODES = {5: "not found", 6: "in use", 14: "store unavailable"}
"""The meaning of the error codes of openings."""


def client(op: str, pause_s: float = 0.05, *, slot: int = 0, **args: Any) -> Action:
    """Returns one action of the client, for its first session."""
    return Action(0, op, pause_s, {"k": 0, "slot": slot, **args})


def opening(
    pause_s: float = 0.05,
    *,
    slot: int = 0,
    durability: pb.Durability.ValueType = STRICT,
    action: pb.DisconnectAction.ValueType = FREE,
) -> Action:
    """Returns an opening of the client's session, even where the client believes that it exists."""
    fixed = {"model": "lazy", "is_made": False, "outputs": False, "unattended": False, "rude": True}
    return client("open", pause_s, slot=slot, durability=durability, action=action, duration_s=5.0, **fixed)


def strike(op: str, pause_s: float, duration_s: float, replica: int = 0) -> Action:
    """Returns one fault. pause_s: seconds after the previous action of the faults."""
    return Action(NATURE, op, pause_s, {"duration_s": duration_s, "replica": replica})


def played(*actions: Action, seed: int = 0, knobs: Knobs = KNOBS) -> Journal:
    """Runs a script. Fails when something is violated. Returns the journal."""
    journal = run_script(seed, list(actions), knobs)
    assert not journal.violations, "\n".join([*journal.violations, "", *list(journal.trace)[-40:]])
    return journal


def reported(journal: Journal) -> list[str]:
    """Returns the responses to the openings of the client's session, in order."""
    answers = [line for line in journal.trace if " < request_id: " in line and 'session_id: "c0s0"' in line]
    kinds = {" opened {": "opened", " closed {": "closed", **{f"code: {code} ": name for code, name in CODES.items()}}
    return [next((kind for sign, kind in kinds.items() if sign in line), line) for line in answers]


def test_a_session_whose_resumption_is_refused_where_it_is_stays_on_its_stream_and_ends_with_it() -> None:
    journal = played(
        opening(),
        strike("cut", 0.1, 4.0),
        client("resume", _PAST_LEASE_S),
        client("leave", 0.1),
        opening(4.0),
    )
    assert reported(journal)[:3] == ["opened", "store unavailable", "opened"]


def test_a_failed_resume_elsewhere_leaves_the_sessions_place_unknown() -> None:
    """The session's first server closes it while the client is connected to another server."""
    journal = played(
        opening(durability=NONE, action=HOLD),
        client("resume", slot=1),
        strike("outage", 3.0, 1.0),
        client("resume", 3.0),
        client("cancel", 0.1),
        knobs=Knobs(idle_timeout_s=1.0),
    )
    assert reported(journal)[:3] == ["opened", "not found", "store unavailable"]


def test_a_session_that_a_refused_resumption_took_may_be_in_the_store_although_its_stream_has_ended() -> None:
    """In some of these runs the store carried out the claim, and its answer was lost."""
    found = set()
    for seed in range(10):
        before = (
            opening(),
            strike("outage", 0.1, 3.0),
            client("leave", _PAST_LEASE_S),
            client("resume", 0.1, slot=1),
        )
        found.add(reported(played(*before, client("resume", 4.0, slot=1), seed=seed))[2])
        played(*before, opening(4.0, durability=NONE, action=HOLD), seed=seed)
    assert found == {"opened", "not found"}


def test_a_session_without_a_record_may_exist_beside_a_new_session_of_its_id() -> None:
    journal = played(
        opening(action=HOLD),
        strike("empty", 0.1, 0.0),
        client("leave", 0.1),
        opening(0.01, slot=1, action=HOLD),
        client("close", 0.02),
        client("resume", 0.02),
    )
    assert reported(journal)[:4] == ["opened", "opened", "closed", "opened"]

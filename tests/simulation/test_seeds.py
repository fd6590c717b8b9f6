"""Seeds: no actions of clients and no faults violate a rule, and the simulation detects every planted violation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from service.sessions.ages import Ages
from service.sessions.directory import Directory
from simulation import arithmetic
from simulation.bundles import OF_NUMBERS
from simulation.run import knobs_of, main, run_script, run_seed, script_of, shrink
from simulation.script import NATURE, draw
from simulation.streams import ClientStream
from simulation.system import Replica
from simulation.wire import Connection
from tests.simulation.scenes import found_by_seeds

SEEDS_A_SHARD = 8
NUM_SHARDS = 10
FOUND: tuple[int, ...] = (
    40001403,
    60032289,
    80005764,
    80020714,
    80034615,
    80066873,
    80073541,
    204007570,
    205008588,
    209006254,
    211008605,
    304005090,
    305002139,
    307002601,
)


@pytest.mark.parametrize("shard", range(NUM_SHARDS))
def test_no_seed_violates_anything(shard: int) -> None:
    for seed in range(shard * SEEDS_A_SHARD, (shard + 1) * SEEDS_A_SHARD):
        journal = run_seed(seed)
        assert not journal.violations, str(shrink(seed, journal))


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_once_violated_something_violates_nothing(seed: int) -> None:
    journal = run_seed(seed, OF_NUMBERS)
    assert not journal.violations, str(shrink(seed, journal, OF_NUMBERS))


def test_plain_sessions_with_room_for_all_violate_nothing() -> None:
    """Without faults, stores, spills and repeated requests: these scripts must never violate a rule."""
    left_out = {"resend", "resend_batch", "contend", "bad", "cancel", "resume"}
    for seed in range(20):
        actions = [action for action in draw(random.Random(f"{seed}/script")) if action.op not in left_out]
        actions = [action for action in actions if action.actor != NATURE]
        for action in actions:
            if action.op == "open":
                action.args.update(durability=pb.DURABILITY_NONE, action=pb.DISCONNECT_ACTION_FREE, outputs=False)
        journal = run_script(seed, actions, replace(knobs_of(seed), num_slots=20, max_sessions=20, max_in_flight=30))
        assert not journal.violations, "\n".join([*journal.violations, "", *list(journal.trace)[-40:]])


@pytest.mark.parametrize("seed", range(40, 48))
def test_a_seed_always_does_the_same(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert list(first.trace) == list(second.trace)
    assert first.violations == second.violations


def test_scripts_reach_every_kind_of_request_and_of_fault() -> None:
    drawn = {action.op for seed in range(100) for action in script_of(seed)}
    assert drawn >= {"open", "feed", "step_batch", "generate", "score", "cancel", "close", "resume", "leave"}
    assert drawn >= {"half_close", "reading", "rewind", "set_state", "snapshot", "restore", "fork", "get", "list"}
    assert drawn >= {"outage", "errors", "stall", "kill", "drain", "graph_errors", "pause", "cut", "empty", "evict"}
    assert {knobs_of(seed).num_replicas for seed in range(100)} == {2, 3, 5}
    assert len({knobs_of(seed).max_age_s for seed in range(100)}) == 4


def test_main_counts_seeds_and_events() -> None:
    result = main(30.0, 0, max_seeds=3)
    assert result["seeds"] == 3
    assert result["events"] > 100
    assert set(result) == {"seeds", "events", "violations"}


def test_a_wrong_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first state number is wrong in some steps."""
    right = arithmetic.StepGraph.run

    def wrong(self: arithmetic.StepGraph, outputs: Any, inputs: Any) -> list[Any]:
        results = right(self, outputs, inputs)
        hidden = results[0]
        hidden[..., 0] += hidden[..., 0] % 5 == 1
        return results

    monkeypatch.setattr(arithmetic.StepGraph, "run", wrong)
    assert found_by_seeds("that the plain model does not give")


def test_a_session_that_is_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ages, "overdue", lambda self: [])
    assert found_by_seeds("has a session of")


def test_a_session_that_is_closed_before_its_age_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ages.is_over
    monkeypatch.setattr(Ages, "is_over", lambda self, opened_at: right(self, opened_at - 0.5))
    assert found_by_seeds("gets CLOSE_REASON_MAX_AGE, for which there is no reason")


def test_a_record_that_lasts_for_longer_than_its_session_may_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ages, "left_s", lambda self, opened_at: math.inf)
    assert found_by_seeds("longer than its session may")


def test_an_answer_that_comes_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Connection.write

    async def twice(self: Connection, response: Any) -> None:
        await right(self, response)
        if response.HasField("fed"):
            await right(self, response)

    monkeypatch.setattr(Connection, "write", twice)
    assert found_by_seeds("is answered again")


def test_an_answer_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Connection.write

    async def lose(self: Connection, response: pb.StreamResponse) -> None:
        if not response.HasField("scored"):
            await right(self, response)

    monkeypatch.setattr(Connection, "write", lose)
    assert found_by_seeds("score")


def test_a_strict_answer_that_is_not_stored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded positions of the store are removed, as if the server treated a strict session like any other."""
    right = ClientStream.written

    def forget(self: ClientStream, response: pb.StreamResponse) -> None:
        right(self, response)
        stamp = self._stamps[id(response)]
        self._stamps[id(response)] = dict.fromkeys(stamp)

    monkeypatch.setattr(ClientStream, "written", forget)
    assert found_by_seeds("and nothing is stored")


def test_sessions_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(self: Replica) -> None:
        """Never expires sessions."""

    monkeypatch.setattr(Replica, "_expire_for_ever", idle)
    assert found_by_seeds("is left at position")


def test_an_id_that_stays_blocked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory ignores that the session's last record was stored."""
    right = Directory.begin_ending

    def begin(self: Directory, session_id: str) -> Callable[[], None]:
        right(self, session_id)
        return lambda: None

    monkeypatch.setattr(Directory, "begin_ending", begin)
    assert found_by_seeds("can neither be resumed nor opened")


def test_a_failing_script_is_cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(self: Replica) -> None:
        """Never expires sessions."""

    monkeypatch.setattr(Replica, "_expire_for_ever", idle)
    seed, journal = next((seed, found) for seed in range(200) if (found := run_seed(seed)).violations)
    failure = shrink(seed, journal)
    assert len(failure.actions) < len(script_of(seed))
    again = run_script(seed, failure.actions)
    assert again.violations[0] == failure.violation
    assert f"--seed {seed}" in str(failure)

"""Seeds of visits and watches: every Step counts once, and watchers receive exactly the events that happened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from service.sessions import watches
from simulation.checks import Journal
from simulation.run import knobs_of
from simulation.visits import Visitor
from simulation.watchers import Watcher
from simulation.world import World, simulate

NUM_SEEDS, NUM_SHARDS = 8, 4


def run_seed(seed: int, *, stalls: bool = False) -> tuple[Journal, list[Watcher]]:
    """Runs visitors, each with two watchers, one at each of two replicas. Returns the journal and the watchers."""
    rng = random.Random(f"{seed}/visits")
    watchers: list[Watcher] = []

    async def act(world: World) -> None:
        visitors = [
            Visitor(f"v{k}", world.replicas, world.journal, random.Random(f"{seed}/visitor/{k}")) for k in range(4)
        ]
        for visitor in visitors:
            for replica in world.replicas:
                own = random.Random(f"{seed}/{visitor.name}/{replica.name}")
                watchers.append(Watcher(visitor, replica, world.journal, own, world.delay, stalls=stalls))
        num_calls = rng.randint(10, 30)
        await asyncio.gather(*(one.run(num_calls) for one in visitors), *(one.run() for one in watchers))

    return simulate(act, seed=str(seed), knobs=replace(knobs_of(seed), num_replicas=2, max_age_s=0.0)), watchers


def said(journal: Journal) -> str:
    return "\n".join([*journal.violations, "", *list(journal.trace)[-40:]])


@pytest.mark.parametrize("shard", range(NUM_SHARDS))
def test_watchers_get_the_events_of_visitors(shard: int) -> None:
    for seed in range(shard * NUM_SEEDS, (shard + 1) * NUM_SEEDS):
        journal, watchers = run_seed(seed)
        assert not journal.violations, f"seed {seed}: {said(journal)}"
        assert sum(one.num_watches for one in watchers) >= 4
        assert not any(one.num_dropped for one in watchers)


def test_watchers_that_stall_are_dropped_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_MAX_EVENTS", 4)
    num_dropped = 0
    for seed in range(12):
        journal, watchers = run_seed(seed, stalls=True)
        assert not journal.violations, f"seed {seed}: {said(journal)}"
        num_dropped += sum(one.num_dropped for one in watchers)
    assert num_dropped > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda watch, before: [] if before[0].moment[1] % 3 == 1 else [watch], "instead of"),
        (lambda watch, before: [watch, watch] if before[0].moment[1] % 3 == 1 else [watch], "instead of"),
    ],
    ids=["a feed that is not reported", "a feed that is reported twice"],
)
def test_a_wrong_watch_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any, Sequence[Any]], list[Any]], words: str
) -> None:
    right = watches.Watcher.put

    def put(self: watches.Watcher, event: watches.WatchEvent) -> None:
        is_fed = isinstance(event.happening, watches.Consumed)
        for one in wrong(self, [event]) if is_fed else [self]:
            right(one, event)

    monkeypatch.setattr(watches.Watcher, "put", put)
    assert any(words in violation for seed in range(3) for violation in run_seed(seed)[0].violations)

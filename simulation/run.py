"""Runs seeds: draws a script from each seed, simulates it, and shortens a script that fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulation.bundles import MODELS
from simulation.checks import Journal
from simulation.knobs import Knobs
from simulation.script import Action, draw
from simulation.world import World, simulate

_MAX_SHRINKS = 300
"""Maximum number of simulations for shortening one script."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that failed. actions: the shortened script; violation: the first one; trace: the log of its simulation."""

    seed: int
    violation: str
    actions: list[Action]
    trace: list[str] = field(repr=False)
    models: Sequence[str] = MODELS

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.violation}", "actions:", *(f"  {action}" for action in self.actions)]
        models = " ".join(self.models)
        return "\n".join([*lines, f"replay: python -m simulation --seed {self.seed} --verbose --models {models}"])


def knobs_of(seed: int, models: Sequence[str] = MODELS) -> Knobs:
    """Returns the limits of a seed's replicas, and the models that they serve."""
    rng = random.Random(f"{seed}/knobs")
    return replace(
        Knobs(models=tuple(models)),
        num_slots=rng.choice([2, 3, 4]),
        idle_timeout_s=rng.choice([0.6, 1.0, 2.0]),
        generation_window=rng.choice([2, 4, 8]),
        max_in_flight=rng.choice([3, 6]),
        inline_s=rng.choice([0.0, 0.0005, float("inf")]),
        checkpoint_interval_s=rng.choice([0.05, 0.3]),
        max_chunk_tokens=rng.choice([2, 4]),
        num_replicas=rng.choice([2, 2, 2, 3, 5]),
        max_age_s=rng.choice([0.7, 1.5, 3.0]) if seed % 5 == 2 else 0.0,
    )


def script_of(seed: int, models: Sequence[str] = MODELS) -> list[Action]:
    """Returns a seed's script."""
    return draw(random.Random(f"{seed}/script"), knobs_of(seed).num_replicas, models)


def run_script(seed: int, actions: list[Action], knobs: Knobs | None = None) -> Journal:
    """Simulates a script with the seed's delays and faults. knobs: limits to use instead of the seed's."""

    async def act(world: World) -> None:
        await world.perform(actions)

    return simulate(act, seed=str(seed), knobs=knobs or knobs_of(seed))


def run_seed(seed: int, models: Sequence[str] = MODELS) -> Journal:
    """Simulates one seed."""
    return run_script(seed, script_of(seed, models), knobs_of(seed, models))


def shrink(seed: int, journal: Journal, models: Sequence[str] = MODELS) -> Failure:
    """Removes actions, first halves and then ever smaller parts, while the seed still fails in the same way."""
    actions, knobs = script_of(seed, models), knobs_of(seed, models)
    kind = kind_of(journal.violations[0])
    num_left = _MAX_SHRINKS
    size = len(actions) // 2
    while size and num_left:
        at = 0
        while at < len(actions) and num_left:
            num_left -= 1
            fewer = actions[:at] + actions[at + size :]
            found = run_script(seed, fewer, knobs)
            if found.violations and kind_of(found.violations[0]) == kind:
                actions, journal = fewer, found
            else:
                at += size
        size //= 2
    return Failure(seed, journal.violations[0], actions, list(journal.trace), models)


def kind_of(violation: str) -> str:
    """Returns the words of a violation without names and numbers, to compare violations."""
    words = [word for word in violation.split() if word.isalpha()]
    return " ".join(words[:12])


def main(
    seconds: float,
    seed: int = 0,
    *,
    models: Sequence[str] = MODELS,
    max_seeds: int | None = None,
    on_failure: Callable[[Failure], None] | None = None,
) -> dict[str, Any]:
    """Runs seeds, beginning with `seed`, until `seconds` have passed or `max_seeds` have run. Returns `seeds`, `events`
    and `violations`."""
    end_s = time.monotonic() + seconds
    num_seeds = num_events = 0
    violations: list[dict[str, Any]] = []
    while time.monotonic() < end_s and (max_seeds is None or num_seeds < max_seeds):
        journal = run_seed(seed + num_seeds, models)
        num_events += journal.num_events
        if journal.violations:
            violations.append({"seed": seed + num_seeds, "violation": journal.violations[0]})
            if on_failure is not None:
                on_failure(shrink(seed + num_seeds, journal, models))
        num_seeds += 1
    return {"seeds": num_seeds, "events": num_events, "violations": violations}

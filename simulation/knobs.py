"""Plain values: the limits of replicas, their callers, and their contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from simulation.bundles import OF_NUMBERS


@dataclass(frozen=True, slots=True)
class Knobs:
    """The limits of replicas and the models that they serve. For their meaning see `service.settings`."""

    num_replicas: int = 2
    num_slots: int = 3
    max_sessions: int = 6
    idle_timeout_s: float = 2.0
    max_age_s: float = 0.0
    generation_window: int = 4
    replay_tokens: int = 16
    max_in_flight: int = 6
    max_marks: int = 2
    num_forks: int = 4
    max_waiting: int = 64
    max_chunk_tokens: int = 4
    max_batch_rows: int = 4
    inline_s: float = 0.0005
    num_tombstones: int = 50
    checkpoint_interval_s: float = 0.3
    checkpoint_tokens: int = 8
    lease_s: float = 0.9
    hold_s: float = 3.0
    keep_s: float = 20.0
    models: tuple[str, ...] = OF_NUMBERS


class Tenant(NamedTuple):
    """A principal that calls. max_sessions: sessions at once on one replica."""

    name: str
    max_sessions: int


class Counts(NamedTuple):
    """Counts of a replica that have bounds. fewest_unanswered: lowest number of unanswered requests of a stream;
    gauges: by name."""

    num_sessions: int
    num_tombstones: int
    fewest_unanswered: int
    gauges: Mapping[str, int]


@dataclass(slots=True)
class Statistics:
    """The contents of a replica. sessions: by id, (position, is attached, is spilled); unanswered: requests of each
    stream; waiters: calls that wait for a session; engines_leaked: running engines that serve nothing; tasks: names of
    running tasks; gauges: by name."""

    sessions: dict[str, tuple[int, bool, bool]]
    slots_used: int
    forks_used: int
    jobs_waiting: int
    unanswered: list[int]
    waiters: int
    engines_leaked: int
    tasks: list[str]
    gauges: dict[str, int] = field(default_factory=dict)

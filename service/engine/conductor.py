"""Who carries out jobs of more than one lane's tokens."""

from __future__ import annotations

from typing import Any, Protocol

from service.engine.jobs import FeedJob, Lane
from service.engine.results import Result
from service.errors import CarouselError


class Conductor(Protocol):
    """Carries out jobs of a kind that is more than one lane's tokens."""

    def begin(self, lane: Lane, job: Any) -> None:
        """It is the job's turn in the lane, in whose hand it is now."""

    def drop(self, lane: Lane, job: Any, error: CarouselError) -> None:
        """Its turn in the lane will never come."""

    def abandon(self, lane: Lane, job: Any, error: CarouselError) -> None:
        """It ends where it is, as far as the lane goes, in whose hand it no longer is."""

    def part_ended(self, lane: Lane, part: FeedJob, result: Result) -> None:
        """One of its parts was done or has failed, and is no longer in the lane's hand."""

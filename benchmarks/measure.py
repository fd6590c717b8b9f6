"""Two things measured alternately, and their ratio: figures drift on a shared machine, ratios of neighbours less."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One subject of a benchmark: the two figures' medians, and the median of their ratios, pair by pair.

    bound: what the ratio must be at least, or at most; None: it is only told.
    """

    subject: str
    ours: float
    theirs: float
    ratio: float
    ratios: list[float]
    unit: str
    bound: float | None
    must_be: Literal["at least", "at most"]

    @property
    def is_met(self) -> bool:
        """Whether the ratio keeps to its bound."""
        if self.bound is None:
            return True
        return self.ratio >= self.bound if self.must_be == "at least" else self.ratio <= self.bound


@dataclass(slots=True)
class Report:
    """A benchmark's rows. question: what over what."""

    name: str
    question: str
    rows: list[Row] = field(default_factory=list)

    def print(self) -> None:
        """Prints the table."""
        print(f"\n{self.name}: {self.question}")
        for row in self.rows:
            low, high = min(row.ratios), max(row.ratios)
            bound = "" if row.bound is None else f"  {row.must_be} {row.bound:g}: {'met' if row.is_met else 'NOT MET'}"
            print(
                f"  {row.subject:<24} {row.ours:>12,.6g} / {row.theirs:>12,.6g} {row.unit:<10}"
                f" = {row.ratio:.3f} ({low:.3f} to {high:.3f}){bound}"
            )

    def as_json(self) -> dict[str, object]:
        """The rows, with a top-level `ratio`: a number, or one for each subject in the table's order."""
        ratios = {row.subject: row.ratio for row in self.rows}
        return {
            "name": self.name,
            "question": self.question,
            "ratio": next(iter(ratios.values())) if len(ratios) == 1 else ratios,
            "rows": [{**asdict(row), "is_met": row.is_met} for row in self.rows],
        }


def write(reports: list[Report], path: Path) -> None:
    """Writes one benchmark's figures, or those of many, by name, with their ratios at the top."""
    whole: dict[str, object] = reports[0].as_json()
    if len(reports) > 1:
        each = {report.name: report.as_json() for report in reports}
        whole = {"name": "all", "ratio": {name: one["ratio"] for name, one in each.items()}, "benchmarks": each}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def alternate(
    subject: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    unit: str,
    bound: float | None,
    must_be: Literal["at least", "at most"] = "at least",
    rounds: int = 5,
) -> Row:
    """Measures the two in turn, `rounds` times after one that does not count."""
    ours()
    theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = [left / right for left, right in pairs]
    return Row(
        subject,
        statistics.median(left for left, _ in pairs),
        statistics.median(right for _, right in pairs),
        statistics.median(ratios),
        ratios,
        unit,
        bound,
        must_be,
    )


def seconds_a_call(call: Callable[[], object], *, for_s: float = 0.3) -> float:
    """The mean time of a call, over as many as take `for_s`."""
    clock = time.perf_counter
    count, began = 0, clock()
    while (elapsed := clock() - began) < for_s or not count:
        call()
        count += 1
    return elapsed / count

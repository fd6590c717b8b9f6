"""Measures two things alternately and compares them. Figures drift on a shared machine; ratios of neighbouring
measurements drift less."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

MustBe = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. cpu_us: microseconds of the server's CPU time per step; None when no server was measured."""

    value: float
    cpu_us: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One subject of a benchmark: the medians of the two figures, and the median of their ratios, pair by pair.

    bound: what the ratio must be at least, or at most; None: no requirement.
    cpu_us, their_cpu_us: medians of the CPU time per step of the two servers.
    """

    subject: str
    ours: float
    theirs: float
    ratio: float
    ratios: list[float]
    unit: str
    bound: float | None
    must_be: MustBe
    cpu_us: float | None = None
    their_cpu_us: float | None = None

    @property
    def is_met(self) -> bool:
        """Returns whether the ratio respects its bound; True without a bound."""
        if self.bound is None:
            return True
        return self.ratio >= self.bound if self.must_be == "at least" else self.ratio <= self.bound

    def line(self) -> str:
        """Returns the row of the table."""
        low, high = min(self.ratios), max(self.ratios)
        cpu = ""
        if self.cpu_us is not None:
            theirs = "" if self.their_cpu_us is None else f" / {self.their_cpu_us:,.3g}"
            cpu = f"  CPU {self.cpu_us:,.3g}{theirs} us a step"
        bound = "" if self.bound is None else f"  {self.must_be} {self.bound:g}: {'met' if self.is_met else 'NOT MET'}"
        figures = f"{self.ours:>12,.6g} / {self.theirs:>12,.6g} {self.unit:<10}"
        return f"{self.subject:<24} {figures} = {self.ratio:.3f} ({low:.3f} to {high:.3f}){cpu}{bound}"


@dataclass(slots=True)
class Report:
    """The rows of a benchmark.

    question: which two things are compared.
    notes: what a reader of the figures must know.
    """

    name: str
    question: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self) -> None:
        """Prints the table."""
        print(f"\n{self.name}: {self.question}")
        for note in self.notes:
            print(f"  {note}")
        for row in self.rows:
            print(f"  {row.line()}")

    def as_json(self) -> dict[str, object]:
        """Returns the rows as JSON. At the top are `ratio`, `cpu_us` and `their_cpu_us`: one value, or one for each
        subject in the table's order."""
        return {
            "name": self.name,
            "question": self.question,
            "notes": self.notes,
            "ratio": self._by_subject(lambda row: row.ratio),
            "cpu_us": self._by_subject(lambda row: row.cpu_us),
            "their_cpu_us": self._by_subject(lambda row: row.their_cpu_us),
            "rows": [{**asdict(row), "is_met": row.is_met} for row in self.rows],
        }

    def _by_subject(self, value: Callable[[Row], float | None]) -> object:
        values = {row.subject: value(row) for row in self.rows}
        return next(iter(values.values())) if len(values) == 1 else values


def write(reports: list[Report], path: Path) -> None:
    """Writes the figures of one benchmark, or of many by name. The ratios are at the top."""
    whole: dict[str, object] = reports[0].as_json()
    if len(reports) > 1:
        each = {report.name: report.as_json() for report in reports}
        tops = {top: {name: one[top] for name, one in each.items()} for top in ("ratio", "cpu_us", "their_cpu_us")}
        whole = {"name": "all", **tops, "benchmarks": each}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def alternate(
    subject: str,
    ours: Callable[[], Sample],
    theirs: Callable[[], Sample],
    *,
    unit: str,
    bound: float | None,
    must_be: MustBe = "at least",
    rounds: int = 5,
) -> Row:
    """Measures the two in turn, `rounds` times after a warm-up round that does not count."""
    ours()
    theirs()
    return row_of(subject, [(ours(), theirs()) for _ in range(rounds)], unit=unit, bound=bound, must_be=must_be)


def row_of(
    subject: str,
    pairs: list[tuple[Sample, Sample]],
    *,
    unit: str,
    bound: float | None,
    must_be: MustBe = "at least",
) -> Row:
    """Returns the row of one or more pairs of measurements."""
    ratios = [left.value / right.value for left, right in pairs]
    return Row(
        subject,
        statistics.median(left.value for left, _ in pairs),
        statistics.median(right.value for _, right in pairs),
        statistics.median(ratios),
        ratios,
        unit,
        bound,
        must_be,
        _median_cpu_us([left for left, _ in pairs]),
        _median_cpu_us([right for _, right in pairs]),
    )


def _median_cpu_us(samples: list[Sample]) -> float | None:
    known = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
    return statistics.median(known) if known else None


def seconds_a_call(call: Callable[[], object], *, for_s: float = 0.3) -> float:
    """Returns the mean time of a call, over as many calls as fit into `for_s`, at least one."""
    clock = time.perf_counter
    count, began = 0, clock()
    while (elapsed := clock() - began) < for_s or not count:
        call()
        count += 1
    return elapsed / count

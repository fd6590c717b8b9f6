"""The setup of the benchmarks: the models, the duration and number of measurements, and the load generator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import native_load
from benchmarks.measure import Report, Sample
from benchmarks.processes import Running, Seen, generate_load, server, service
from benchmarks.subjects import LARGE, REPOSITORY, SMALL, Subject
from benchmarks.traffic import Load

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "load.svg"


@dataclass(frozen=True, slots=True)
class Setup:
    """The setup of a benchmark.

    seconds: of one measurement, after `warmup_s`.
    held_s: seconds of one measurement of `tail`.
    rounds: how many measurements of each side count.
    old_position: the higher position of `growth`.
    long_feed: tokens per feed of `blocking`.
    num_many: sessions of `million`.
    num_idle: streams of `memory`.
    stores: the stores of `durability`.
    wire: of the service and of the servers that `server` starts.
    shared: a service of `models` that already runs; None: each benchmark starts one.
    """

    models: Path = REPOSITORY
    small: Subject = SMALL
    large: Subject = LARGE
    seconds: float = 2.0
    warmup_s: float = 1.0
    held_s: float = 30.0
    rounds: int = 5
    old_position: int = 1_000_000
    long_feed: int = 100_000
    num_many: int = 1_000_000
    num_idle: int = 5_000
    stores: tuple[str, ...] = ("lmdb", "redis")
    picture: Path = PICTURE
    wire: str = "grpcio"
    shared: Running | None = None

    def report(self, name: str, question: str) -> Report:
        """Returns an empty report, with a note when the native generator is not available."""
        return Report(name, question, notes=notes())

    @contextmanager
    def service(self, flags: Mapping[str, object] | None = None) -> Iterator[Running]:
        """Starts the service with its default settings, which store nothing, except for `flags`."""
        if self.shared is not None and not flags:
            yield self.shared
            return
        with service(self.models, self.wire, flags) as started:
            yield started

    @contextmanager
    def server(self, module: str, *arguments: str) -> Iterator[Running]:
        """Starts a server to compare with, on the service's wire: see `benchmarks.processes.server`."""
        with server(self.wire, module, *arguments) as started:
            yield started

    def load(self, subject: Subject | None = None, **options: float | str) -> Load:
        """Returns the load for a generator, by default of the small model. options: see `Load`."""
        subject = subject or self.small
        given: dict[str, object] = {
            "model": subject.name,
            "vocabulary": subject.vocabulary,
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
        }
        return Load(**{**given, **options})  # type: ignore[arg-type]  # types are not checked here

    def seen(self, generator: str, at: Running, load: Load) -> Seen:
        """Runs a generator. Returns its figures."""
        return generate_load(generator, at, load)

    def sample(self, generator: str, at: Running, load: Load, value: str = "per_second") -> Sample:
        """Runs a generator. Returns one of its figures, with the server's CPU time."""
        seen = generate_load(generator, at, load)
        return Sample(seen[value], seen.get("cpu_us"))


def notes() -> list[str]:
    """Returns a warning when the native load generator is not available; else nothing."""
    reason = native_load.why_not()
    warning = "the Python generator uses a core, so ratios are not comparable"
    return [f"native generator: not available ({reason}): {warning}"] if reason else []

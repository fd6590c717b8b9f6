"""What is measured: language models of random weights in three sizes, made once and kept under build/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import export

REPOSITORY = Path(__file__).parent.parent / "build" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and its folder when it is made."""

    name: str
    hidden: int
    layers: int
    vocabulary: int

    @property
    def folder(self) -> Path:
        """Its bundle."""
        return REPOSITORY / self.name / "1"


SMALL = Subject("lm-small", 128, 1, 64)
MEDIUM = Subject("lm-medium", 256, 2, 1_000)
LARGE = Subject("lm-large", 512, 2, 8_000)
SUBJECTS = (SMALL, MEDIUM, LARGE)


def make() -> Path:
    """Makes what is missing; the repository of all."""
    for subject in SUBJECTS:
        export(REPOSITORY, subject.name, hidden=subject.hidden, layers=subject.layers, vocabulary=subject.vocabulary)
    return REPOSITORY

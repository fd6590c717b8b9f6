"""The models that benchmarks measure: language models with random weights in three sizes, made once and kept under
build/."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from service.repository.manifest import FILE_NAME, Manifest

REPOSITORY = Path(__file__).parent.parent / "build" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with random weights, and the repository of its bundle."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    variants: tuple[str, ...] = ()
    repository: Path = REPOSITORY

    @property
    def folder(self) -> Path:
        """The folder of its bundle."""
        return self.repository / self.name / "1"


SMALL = Subject("lm-small", 128, 1, 64)
MEDIUM = Subject("lm-medium", 256, 2, 1_000)
LARGE = Subject("lm-large", 512, 2, 8_000, ("int8",))
SUBJECTS = (SMALL, MEDIUM, LARGE)


def make(subjects: tuple[Subject, ...] = SUBJECTS) -> Path:
    """Makes the bundles that do not exist yet. Returns the repository of all."""
    for subject in subjects:
        export(subject)
    return REPOSITORY


def export(subject: Subject) -> None:
    """Makes a language model with random weights, unless its bundle exists with all its variants."""
    manifest = subject.folder / FILE_NAME
    if manifest.exists():
        variants = Manifest.model_validate_json(manifest.read_bytes()).variants
        if set(subject.variants) <= set(variants):
            return
    sizes = {"hidden": subject.hidden, "layers": subject.layers, "vocabulary": subject.vocabulary}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    variants_flag = ["--variants", *subject.variants] if subject.variants else []
    command = [
        sys.executable,
        "-m",
        "export",
        "random-lm",
        "--name",
        subject.name,
        "--to",
        str(subject.repository),
        "--replace",
    ]
    subprocess.run([*command, *flags, *variants_flag], check=True, stdout=subprocess.DEVNULL)

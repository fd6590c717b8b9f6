"""Writes the card of a shipped model: what it is, its figures next to a baseline's, how to make it, its limits, its
data. `export.card` writes the part that the manifest contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from export import card
from export.bundle import BundleOptions
from export.shipped.runs import CURVES_FILE, curves_of
from service.repository.manifest import Manifest


class Evaluation(BaseModel):
    """The contents of a recipe's `evaluation.json`; further fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    checkpoint_sha256: str
    """SHA-256 of the measured checkpoint, in hexadecimal."""
    task: str
    """What was measured, as text."""
    split: str
    """How the data were divided, as text."""

    def figure(self, name: str) -> float:
        """Returns a further field. Raises KeyError when it does not exist, TypeError when it is no number."""
        found = (self.model_extra or {})[name]
        if not isinstance(found, int | float):
            raise TypeError(f"{name} = {found!r} is not a number")
        return float(found)


@dataclass(frozen=True, slots=True)
class Story:
    """The contents of a card that only the model's author knows.

    about: paragraphs. figures: a table, its header first. commands: those that make the model again. limits: one or two
    sentences each. data: the owner and the licence.
    """

    about: Sequence[str]
    figures: Sequence[Sequence[str]]
    commands: Sequence[str]
    limits: Sequence[str]
    data: str
    figures_note: str = ""
    examples: Sequence[Sequence[str]] = field(default_factory=tuple)


def making(recipe: str, flags: str = "") -> list[str]:
    """Returns the commands that train a recipe's model and export it. flags: further ones of the export."""
    return [
        f"python -m models.recipes.{recipe} train --run runs/{recipe}",
        f"python -m export {recipe} runs/{recipe}/best.safetensors --to model_repository{flags}",
    ]


def describe(
    options: BundleOptions,
    checkpoint: Path,
    evaluation: Evaluation,
    story: Callable[[Manifest], Story],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Fills in the options that describe a shipped bundle: its evaluation, its card, and the files beside it, which are
    the run's curves and `files`."""
    curves = curves_of(checkpoint)
    options["evaluation"] = evaluation.model_dump()
    options.setdefault("extra_files", {**curves, **(files or {})})
    options.setdefault(
        "write_card",
        lambda manifest: write_card(manifest, evaluation, story(manifest), curves_file=CURVES_FILE if curves else None),
    )


def write_card(manifest: Manifest, evaluation: Evaluation, story: Story, *, curves_file: str | None) -> str:
    """Returns the whole card, in Markdown. curves_file: the name of a picture next to it; None: no picture."""
    lines = [f"# {manifest.model}, version {manifest.version}", "", f"{manifest.description}.", ""]
    for paragraph in story.about:
        lines += [paragraph, ""]
    if story.examples:
        lines += card.table(story.examples[0], story.examples[1:])
    lines += ["## Figures", "", f"{evaluation.task[0].upper()}{evaluation.task[1:]}.", ""]
    lines += card.table(story.figures[0], story.figures[1:])
    if story.figures_note:
        lines += [story.figures_note, ""]
    lines += ["## Training", "", f"The split: {evaluation.split}.", ""]
    lines += ["To train it again, install the extra `train` and run:", ""]
    lines += ["```sh", *story.commands, "```", ""]
    lines += [
        "The seed is fixed. Another processor or another version of PyTorch rounds differently, so the weights differ "
        "slightly.",
        "",
    ]
    if curves_file is not None:
        lines += [f"![training loss and validation error by epoch]({curves_file})", ""]
    lines += ["## Limits", "", *(f"- {limit}" for limit in story.limits), ""]
    lines += ["## Data and licence", "", story.data, ""]
    return "\n".join([*lines, card.reference(manifest)])

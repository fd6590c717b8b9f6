"""The card of a shipped model: what it is, how good it is beside a baseline, how to make it, what it cannot do, whose
data. What can be told from the manifest alone is `card`'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from export import card
from service.repository.manifest import Manifest


class Evaluation(BaseModel):
    """What a recipe writes into `evaluation.json`; fields beyond these are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    checkpoint_sha256: str
    """SHA-256 of the checkpoint that was measured, in hexadecimal."""
    task: str
    """What was measured, in words."""
    split: str
    """How the data were divided, in words."""

    def figure(self, name: str) -> float:
        """One of the fields beyond these. Raises KeyError, and TypeError when it is no number."""
        found = (self.model_extra or {})[name]
        if not isinstance(found, int | float):
            raise TypeError(f"{name} = {found!r} is not a number")
        return float(found)


@dataclass(frozen=True, slots=True)
class Story:
    """What only its author can tell of a model.

    about: paragraphs. figures: a table, its header first. commands: that make it again. limits: each a sentence or
    two. data: whose they are, and under what licence.
    """

    about: Sequence[str]
    figures: Sequence[Sequence[str]]
    commands: Sequence[str]
    limits: Sequence[str]
    data: str
    figures_note: str = ""
    examples: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_card(manifest: Manifest, evaluation: Evaluation, story: Story, *, curves_file: str | None) -> str:
    """The whole card, in Markdown. curves_file: the name of a picture beside it."""
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
    lines += ["To make it again, with the extra `train` installed:", ""]
    lines += ["```sh", *story.commands, "```", ""]
    lines += [
        "The seed is fixed, but another processor or another PyTorch rounds differently and ends in slightly other "
        "weights.",
        "",
    ]
    if curves_file is not None:
        lines += [f"![training loss and validation error by epoch]({curves_file})", ""]
    lines += ["## Limits", "", *(f"- {limit}" for limit in story.limits), ""]
    lines += ["## Data and licence", "", story.data, ""]
    return "\n".join([*lines, card.reference(manifest)])

"""Names of a file's tensors: in flags, and in the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from export.errors import ExportError
from export.foreign.loading import load

_MAX_LENGTH = 64
_OTHERS = re.compile(r"[^A-Za-z0-9_.-]")


def plain_names(names: Iterable[str]) -> list[str]:
    """Returns unique names that a manifest accepts, in the tensors' order."""
    found: list[str] = []
    for name in names:
        plain = _OTHERS.sub("_", name)
        plain = (f"_{plain}" if plain[:1] in ("", ".", "-") else plain)[:_MAX_LENGTH]
        one, number = plain, 1
        while one in found:
            number += 1
            one = f"{plain[: _MAX_LENGTH - len(str(number)) - 1]}_{number}"
        found.append(one)
    return found


def renamed(kind: str, names: Sequence[str]) -> list[str]:
    """Returns notes about tensors with another name in the manifest. kind: what they are, such as `state`."""
    return [
        f"{kind} {name} is named {plain} in the bundle and its API"
        for name, plain in zip(names, plain_names(names), strict=True)
        if name != plain
    ]


def split_pairs(texts: Sequence[str], file: Path) -> list[tuple[str, str]]:
    """Splits each INPUT=OUTPUT into two names. If a name contains an equals sign, looks the names up in the file.

    Raises ExportError if the file has several such pairs, and what `load` raises.
    """
    if all(text.count("=") == 1 for text in texts):
        return [(name, output) for name, _, output in (text.partition("=") for text in texts)]
    graph = load(file).graph
    inputs, outputs = {one.name for one in graph.input}, {one.name for one in graph.output}
    found = []
    for text in texts:
        places = [place for place, character in enumerate(text) if character == "="]
        pairs = [(text[:place], text[place + 1 :]) for place in places]
        known = [(name, output) for name, output in pairs if name in inputs and output in outputs]
        if len(known) > 1:
            choices = " or ".join(f"{name!r} and {output!r}" for name, output in known)
            raise ExportError(f"--state {text} is ambiguous, it may be {choices}: rename a tensor of the file")
        found.append(known[0] if known else pairs[0])
    return found

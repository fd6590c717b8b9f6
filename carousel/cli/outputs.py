"""Shows the model's prediction to people, and makes the object that `--json` prints."""

from __future__ import annotations

import math

from rich.cells import cell_len

from carousel.cli.printing import echo, print_table, terminal_width
from carousel.cli.reading import shown, visible
from carousel.values import ModelInfo, StepOutput

_LONGEST_BAR = 40
_LONGEST_LINE = 80
"""The width in columns if there is no terminal."""


def show(output: StepOutput, info: ModelInfo) -> None:
    """Prints the values, or the candidates with their probabilities."""
    if info.value_size:
        echo(shown(output.values))
        return
    names = [visible(token.text) for token in output.tokens]
    room = (terminal_width() or _LONGEST_LINE) - max(map(cell_len, [*names, "NEXT"])) - len("  PROBABILITY  ")
    shares = [math.exp(token.log_probability or 0.0) for token in output.tokens]
    rows = [
        (name, f"{share:.2%}", "█" * round(share * min(max(room, 0), _LONGEST_BAR)))
        for name, share in zip(names, shares, strict=True)
    ]
    print_table(("NEXT", "PROBABILITY#", ""), rows, empty="")


def object_of(output: StepOutput) -> dict[str, object]:
    """Returns the position, and tokens, outputs by name, or values."""
    found: dict[str, object] = {"position": output.position}
    if output.tokens:
        found["tokens"] = output.tokens
    elif output.outputs:
        found["outputs"] = output.outputs
    else:
        found["values"] = output.values
    return found


def spelled(*outputs: StepOutput) -> str:
    """Returns the tokens of outputs as text. SentencePiece's word-start mark becomes a space."""
    return "".join(token.text.replace("\u2581", " ") for output in outputs for token in output.tokens)

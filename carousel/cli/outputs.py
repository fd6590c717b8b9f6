"""What comes next, shown to people."""

from __future__ import annotations

import math

import typer

from carousel.cli.printing import print_table
from carousel.cli.reading import shown, visible
from carousel.values import ModelInfo, StepOutput


def show(output: StepOutput, info: ModelInfo) -> None:
    """Prints the values, or the candidates with their probabilities."""
    if info.value_size:
        typer.echo(shown(output.values))
        return
    shares = [math.exp(token.log_probability or 0.0) for token in output.tokens]
    rows = [
        (visible(token.text), f"{share:.2%}", "█" * round(share * 40))
        for token, share in zip(output.tokens, shares, strict=True)
    ]
    print_table(("NEXT", "PROBABILITY#", ""), rows, empty="")

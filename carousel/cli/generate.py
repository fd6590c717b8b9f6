"""`carousel generate`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from carousel.cli import failures
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.failures import LineError
from carousel.cli.forecast import values_after
from carousel.cli.printing import AsJson, echo, print_json, progress
from carousel.cli.reading import lines, named, shown, source_of, vectors_of
from carousel.client import Client
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError
from carousel.values import ModelInfo


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    source: Annotated[
        str | None, typer.Argument(help="Source of a model with an encoder; for other models, what to consume first.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", allow_dash=True, help="Sources, one a line; - for standard input."),
    ] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Continue after a refused line of --input.")] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="What to consume first: text, as the model splits it, or numbers such as `1.5,2 1.6,3`."),
    ] = None,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    constant: Given = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="The most tokens, or steps of numbers.")
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0, help="The fewest tokens before the end.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample, with the logits divided by this. --top-k, --top-p or --seed also select sampling."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample only from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample only from the likeliest tokens that together have this probability.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for sampling: the same seed gives the same tokens.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes tokens that occurred before less likely.")
    ] = None,
    beam_size: Annotated[
        int | None, typer.Option(min=1, help="Search for the likeliest sequences with so many beams.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With --beam-size: higher values prefer longer sequences (default: 1).")
    ] = None,
    num_best: Annotated[int | None, typer.Option(min=1, help="With --beam-size: how many sequences to print.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generates a sequence, or one for each line of a file; prints tokens as they arrive.

    A refused line of --input is reported and ends the command; with --keep-going its output line is empty, the command
    continues, and the exit code is that of the first refused line. With --json an object a sequence: source, line (of
    --input), tokens, finish_reason, and hypotheses for --beam-size; for a model of numbers values, a list a step.
    """
    if source is not None and input_file is not None:
        raise typer.BadParameter("give SOURCE or --input, not both")
    if keep_going and input_file is None:
        raise typer.BadParameter("--keep-going needs --input")
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "num_best": num_best,
    }
    decoding = {name: value for name, value in options.items() if value is not None}
    for name in ("length_penalty", "num_best"):
        if name in decoding and beam_size is None:
            raise typer.BadParameter(f"--{name.replace('_', '-')} needs --beam-size")
    connection: Connection = context.obj
    sources: list[tuple[int, str | None]] = [(0, source)] if input_file is None else [*lines(input_file)]
    with connection.client() as client:
        info = client.model(model, version)
        asked = _Asked(client, info, prompt, variant, decoding, constants_of(info, constant), as_json)
        asked.check(has_source=source is not None or input_file is not None)
        bar = progress() if len(sources) > 1 and not sys.stdout.isatty() else nullcontext()
        code = 0
        with bar as drawn:
            task = None if drawn is None else drawn.add_task("generating", total=len(sources))
            for number, one in sources:
                try:
                    asked.run(one, number)
                except (CarouselError, typer.BadParameter) as error:
                    if input_file is None:
                        raise
                    failed = LineError(named(input_file), number, _explained(connection, error))
                    refused = failures.passed_over(failed, keep_going=keep_going)
                    code = code or refused
                if drawn is not None and task is not None:
                    drawn.advance(task)
    if code:
        raise typer.Exit(code)


def _explained(connection: Connection, error: CarouselError | typer.BadParameter) -> Exception:
    return connection.explained(error) if isinstance(error, CarouselError) else error


class _Asked(NamedTuple):
    """What to generate for each source."""

    client: Client
    info: ModelInfo
    prompt: str | None
    variant: str
    decoding: dict[str, Any]
    constants: dict[str, Any]
    as_json: bool

    def check(self, *, has_source: bool) -> None:
        """Raises typer.BadParameter for options that the model does not support."""
        if has_source and self.prompt and not self.info.has_encoder:
            raise typer.BadParameter(f"{self.info.model} has no encoder: give SOURCE, or --input, or --prompt")
        unused = [name for name in self.decoding if name != "max_tokens"]
        if self.info.value_size and unused:
            flag = f"--{unused[0].replace('_', '-')}"
            raise typer.BadParameter(f"{self.info.model} outputs values, not tokens", param_hint=flag)

    def run(self, text: str | None, line: int) -> None:
        """Generates a sequence for one source and prints it. line: its line number in the file; 0 without a file."""
        found: dict[str, Any] = {"source": text} | ({"line": line} if line else {})
        source, prompt = (text, self.prompt) if self.info.has_encoder else (None, text or self.prompt)
        tokens: list[str] = []
        try:
            if self.info.value_size:
                self._values(source, prompt, found)
            else:
                self._tokens(source, prompt, found, tokens)
        except (CarouselError, typer.BadParameter):
            if not self.as_json and (tokens or line):
                echo()
            raise

    def _values(self, source: str | None, prompt: str | None, found: dict[str, Any]) -> None:
        history = None if source is None else vectors_of(self.info, source, "SOURCE")
        then = None if prompt is None else vectors_of(self.info, prompt, "--prompt")
        if not self.info.has_encoder:
            history, then = then, None
        values = values_after(
            self.client, self.info, history, then, self.decoding.get("max_tokens"), self.variant, self.constants
        )
        if self.as_json:
            print_json(found | {"values": values})
        else:
            echo("\n".join(map(shown, values)))

    def _tokens(self, source: str | None, prompt: str | None, found: dict[str, Any], tokens: list[str]) -> None:
        between = "" if self.info.tokenizer == "characters" else " "
        decoding: DecodingOptions = self.decoding  # type: ignore[assignment]  # the command's options have these types
        generation = self.client.generate(
            self.info.model,
            source_of(self.info, source),
            version=self.info.version,
            variant=self.variant,
            prompt=prompt or None,
            constants=self.constants,
            **decoding,
        )
        is_search = "beam_size" in self.decoding
        is_shown = not (self.as_json or is_search)
        has_text, num_shown = self.info.tokenizer == "subword", 0
        for token in generation:
            text = generation.text[num_shown:] if has_text else (between if tokens else "") + token.text
            if is_shown:
                echo(text, nl=False)
                sys.stdout.flush()
            num_shown += len(text)
            tokens.append(token.text)
        if is_shown:
            echo(generation.text[num_shown:], nl=False)
        if self.as_json:
            found |= {"tokens": tokens, "finish_reason": generation.finish_reason}
            found |= {"text": generation.text} if has_text else {}
            print_json(found | ({"hypotheses": generation.hypotheses} if is_search else {}))
        elif is_search:
            for hypothesis in generation.hypotheses:
                found_text = hypothesis.text if has_text else between.join(token.text for token in hypothesis.tokens)
                echo(f"{hypothesis.score:9.4f}  {found_text}")
        else:
            echo()

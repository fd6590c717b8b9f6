"""The second part of the demo: streams the translation of a sentence, word by word, and draws its attention."""

from __future__ import annotations

import sys
import time

from carousel import Client, ModelInfo
from carousel.cli.attention import Attention, drawn, shades_in

MODEL = "translate-en-de"
SENTENCE = "The selected file could not be opened because the disk is full."
WIDTH = 100
"""The width of the picture in columns."""


def translate(client: Client) -> None:
    """Translates the sentence and draws the attention. Prints a note if the server does not have the model."""
    model = next((one for one in client.models() if one.model == MODEL), None)
    if model is None:
        print(f"\nThe server has no {MODEL}: the translation of a sentence is left out.")
        return
    tokens = stream(client)
    name = next((one for one in model.trace if "attention" in one), None)
    if tokens and name is not None:
        print("\nWhere it looked before each word. This is in the trace of a session that is fed the same:\n")
        lines = drawn(look(client, model, tokens, name), width=WIDTH, shades=shades_in(sys.stdout.encoding))
        print("\n".join(f"  {line}".rstrip() for line in lines))


def stream(client: Client) -> list[str]:
    """Prints the translation, each word when it arrives. Returns its tokens, which are pieces of words."""
    print(
        f"\nA sentence, translated by {MODEL}; the server cuts it into pieces and sends each word when it is complete:"
    )
    print(f"  {SENTENCE}\n ", end="", flush=True)
    began = time.perf_counter()
    arrivals: list[float] = []
    tokens, printed = [], ""
    generation = client.generate(MODEL, SENTENCE)
    for token in generation:
        tokens.append(token.text)
        printed = _print_more(generation.text, printed, began, arrivals)
    _print_more(generation.text, printed, began, arrivals)
    print()
    if arrivals:
        print(f"  first word after {1e3 * arrivals[0]:.1f} ms, last after {1e3 * arrivals[-1]:.1f} ms")
    return tokens


def look(client: Client, model: ModelInfo, tokens: list[str], name: str) -> Attention:
    """Returns the attention over words of a session that is fed the tokens. name: the attention's name in the trace."""
    with client.session(model.model, SENTENCE, version=model.version, first=True, trace=True) as session:
        outputs = [] if session.first is None else [session.first]
        if len(tokens) > 1:  # the trace for the choice of a token is in the output before it
            outputs += session.feed(tokens[:-1], every_position=True, trace=True).outputs
        source = [token.text for token in session.source]
    return Attention(source, tokens, [output.trace[name] for output in outputs]).of_words()


def _print_more(text: str, printed: str, began: float, arrivals: list[float]) -> str:
    """Prints the new part of a text, and records the time. Returns the text."""
    more = text.removeprefix(printed)
    if more:
        arrivals.append(time.perf_counter() - began)
        print(more if printed else f" {more}", end="", flush=True)
    return text

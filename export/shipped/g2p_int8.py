"""Evaluates the int8 variant of `g2p-en`: base and variant decode the words of the test split greedily."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from export.errors import ExportError
from export.proofs.runners import IntArray, Runner
from models.metrics import score
from models.recipes import cmudict_data as data
from models.recipes import g2p as recipe
from service.repository.manifest import SOURCE_MULTIPLE

MAX_LOSS = 0.003
"""The largest allowed increase of the word error rate, as a fraction."""

_BATCH_SIZE = 256


def evaluate(base: Runner, variant: Runner) -> dict[str, object]:
    """Returns both graphs' greedy error rates on the whole test split, and the difference of the word error rates.

    Raises ExportError when the variant adds more than `MAX_LOSS`.
    """
    words = data.load("test").words
    rates = {
        name: score((found[word], references) for word, references in words.items())
        for name, found in (
            ("base_greedy", transcribe(base, list(words))),
            ("greedy", transcribe(variant, list(words))),
        )
    }
    loss = rates["greedy"].word_error_rate - rates["base_greedy"].word_error_rate
    if loss > MAX_LOSS:
        raise ExportError(
            f"the int8 variant's word error rate is {100 * loss:.2f} points over the base's, more than the "
            f"{100 * MAX_LOSS:g} allowed: export without it"
        )
    return {**{name: asdict(rate) for name, rate in rates.items()}, "word_error_rate_loss": loss, "max_loss": MAX_LOSS}


def transcribe(runner: Runner, words: Sequence[str]) -> dict[str, list[str]]:
    """Returns the phonemes of each word, decoded greedily in batches through the graphs of `g2p-en`."""
    by_width: dict[int, list[str]] = defaultdict(list)
    for word in words:
        by_width[-(-len(word) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE].append(word)
    found: dict[str, list[str]] = {}
    for width, group in by_width.items():
        for at in range(0, len(group), _BATCH_SIZE):
            part = group[at : at + _BATCH_SIZE]
            found.update(zip(part, _transcribe(runner, part, width), strict=True))
    return found


def _transcribe(runner: Runner, words: Sequence[str], width: int) -> list[list[str]]:
    letters = {letter: index for index, letter in enumerate(data.GRAPHEMES)}
    names = data.phonemes()
    source = np.full((len(words), width), recipe.PAD_ID, np.int64)  # [B, S]
    for row, word in zip(source, words, strict=True):
        row[: len(word)] = [letters[letter] for letter in word]
    memory, memory_mask, *states = runner.encode(source, np.array([len(word) for word in words], np.int64))
    tokens = np.full((len(words), 1), recipe.BOS_ID, np.int64)
    ones = np.ones(len(words), np.int64)
    chosen: list[IntArray] = []
    ended = np.zeros(len(words), bool)
    while len(chosen) <= recipe.MAX_TARGET_TOKENS and not ended.all():
        logits, hidden, cell, *_ = runner.step(tokens, ones, [*states, memory, memory_mask])
        states = [hidden, cell]
        tokens = logits.argmax(axis=2)  # [B, 1]
        chosen.append(tokens[:, 0])
        ended |= tokens[:, 0] == recipe.EOS_ID
    rows = [row.tolist() for row in np.stack(chosen, axis=1)]
    return [[names[token] for token in row[: (*row, recipe.EOS_ID).index(recipe.EOS_ID)]] for row in rows]

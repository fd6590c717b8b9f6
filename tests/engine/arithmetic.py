"""A bundle whose step graph is plain arithmetic. Without ONNX Runtime, a test can drive an engine step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array
from service.repository.bundle import Bundle, VariantGraphs
from service.repository.manifest import BASE_VARIANT
from tests import domain

VOCABULARY_SIZE = len(domain.TARGET_NAMES)
EOS_ID = 2
_MODULUS = 9973


class ArithmeticGraph:
    """Has the `run` method of `ort.InferenceSession` that the engine calls. error: the next run raises it, once."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        tokens = feeds["tokens"].astype(np.int64)
        hidden, cell = feeds["hidden"].copy(), feeds["cell"].copy()
        logits = np.zeros((*tokens.shape, VOCABULARY_SIZE), np.float32)
        for row, length in enumerate(feeds["lengths"].astype(np.int64).tolist()):
            number = int(hidden[0, row, 0])
            for column in range(length):
                number = advanced(number, int(tokens[row, column]))
                logits[row, column] = logits_of(number)
            hidden[0, row, 0] = number
        found = {"next_hidden": hidden, "next_cell": cell, "logits": logits}
        return [found[name] for name in names]


def advanced(number: int, token: int) -> int:
    """Returns the state after a token."""
    return (number * 31 + token + 1) % _MODULUS


def logits_of(number: int) -> Array:
    """Returns the logits of a state. The end token is never the most likely."""
    logits = np.array([(number * (token + 3)) % 101 / 10 for token in range(VOCABULARY_SIZE)], np.float32)
    logits[EOS_ID] = -1.0
    return logits


def arithmetic_bundle(graph: ArithmeticGraph) -> Bundle:
    """Returns the bundle `made` with the given step graph."""
    made = domain.bundle()
    variants = {BASE_VARIANT: VariantGraphs(cast(ort.InferenceSession, graph), made.manifest.step)}
    return replace(made, variants=variants)


def plain_tokens(bos_id: int, fed: Sequence[int], count: int) -> list[int]:
    """Returns the `count` tokens of a greedy generation after the start token and `fed`."""
    number = 0
    for token in (bos_id, *fed):
        number = advanced(number, token)
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(logits_of(number).argmax()))
        number = advanced(number, tokens[-1])
    return tokens

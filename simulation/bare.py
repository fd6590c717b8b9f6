"""Plain loops over the ONNX files of a transducer and of a translator: the reference for sessions of their bundles.

They run one row and one step at a time, with a separate run for each file. A state has the session's tensors as bytes,
in the order of the manifest, and then its contexts. Two states are equal if all their bits are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from simulation.arithmetic import VOCABULARY_SIZE
from simulation.exported import FILES, LISTENER, TRANSLATOR, frame_of
from simulation.files import HISTORY, MAX_SYMBOLS, SOURCE_EOS_ID

Array = NDArray[Any]
_UNKNOWN = (0.0,) * VOCABULARY_SIZE


class Emitted(NamedTuple):
    """The output of one step of the transducer. num_limited: 1 if the frame reached the limit of tokens, else 0."""

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    num_limited: int


class Bare(NamedTuple):
    """A state of one of the two models."""

    model: str
    tensors: tuple[bytes, ...]

    def step(self, token: int) -> Bare:
        """Returns the state after one more token, or one more frame, which a token number stands for."""
        return _listened(self, token)[0] if self.model == LISTENER else _translated(self, token)

    def emitted(self, token: int) -> Emitted:
        """Returns the tokens that the transducer emits for a frame."""
        return _listened(self, token)[1]

    @property
    def logits(self) -> tuple[float, ...]:
        """[V] next logits. Zeros where they are not known: for a transducer, and for a state without a step before."""
        return _LOGITS.get(self, _UNKNOWN)

    @property
    def emitted_so_far(self) -> tuple[list[int], int]:
        """The transducer's last tokens, and the number of all tokens that it emitted."""
        history, (count,) = (np.frombuffer(one, np.int64).tolist() for one in self.tensors[3:])
        return history[max(0, HISTORY - count) :], count

    def replaced(self, tensors: Sequence[bytes]) -> Bare:
        """Returns a copy with other tensors and the same contexts."""
        return self._replace(tensors=(*tensors, *self.tensors[len(tensors) :]))


_LOGITS: dict[Bare, tuple[float, ...]] = {}
"""The logits of the states that a step of the translator has produced."""


@cache
def beginning(model: str, source: tuple[int, ...]) -> Bare:
    """Returns the first state of a session, after its start token."""
    if model == LISTENER:
        predicted, said = _run(LISTENER, "predictor", {"token": _tokens(0), "said": np.zeros((1, 2), np.float32)})
        heard = np.zeros((1, 2), np.float32)
        return _heard(heard, said, predicted, np.zeros(HISTORY, np.int64), 0)
    whole = np.array([[*source, SOURCE_EOS_ID]], np.int64)
    memory, hidden = _run(TRANSLATOR, "encoder", {"source": whole})
    length = np.array(whole.size, np.int64)
    return Bare(TRANSLATOR, (hidden.tobytes(), length.tobytes(), memory.tobytes())).step(1)


@cache
def _listened(state: Bare, token: int) -> tuple[Bare, Emitted]:
    heard, said, predicted = (np.frombuffer(one, np.float32).reshape(1, 2) for one in state.tensors[:3])
    history, count = (np.frombuffer(one, np.int64) for one in state.tensors[3:])
    frame = np.array([[frame_of(token)]], np.float32)
    encoded, heard = _run(LISTENER, "encoder", {"frame": frame, "heard": heard})
    token_ids: list[int] = []
    scores: list[float] = []
    while len(token_ids) < MAX_SYMBOLS:
        (logits,) = _run(LISTENER, "joiner", {"encoded": encoded[:, 0], "predicted": predicted.reshape(1, 2)})
        token_id = int(logits[0].argmax())
        if token_id == 0:
            break
        shifted = logits[0].astype(np.float64) - logits.max()
        token_ids.append(token_id)
        scores.append(float(shifted[token_id] - np.log(np.exp(shifted).sum())))
        predicted, said = _run(LISTENER, "predictor", {"token": _tokens(token_id), "said": said})
    history = np.append(history, token_ids).astype(np.int64)[-HISTORY:]
    after = _heard(heard, said, predicted, history, int(count[0]) + len(token_ids))
    return after, Emitted(tuple(token_ids), tuple(scores), int(len(token_ids) == MAX_SYMBOLS))


def _heard(heard: Array, said: Array, predicted: Array, history: Array, count: int) -> Bare:
    arrays = (heard, said, predicted, history, np.array([count], np.int64))
    return Bare(LISTENER, tuple(array.tobytes() for array in arrays))


@cache
def _translated(state: Bare, token: int) -> Bare:
    hidden, _, memory = state.tensors
    feeds = {
        "token": _tokens(token),
        "hidden": np.frombuffer(hidden, np.float32).reshape(1, 2),
        "memory": np.frombuffer(memory, np.float32).reshape(1, -1, 2),
    }
    logits, following = _run(TRANSLATOR, "decoder", feeds)
    after = state.replaced([following.tobytes()])
    _LOGITS[after] = tuple(logits.ravel().tolist())
    return after


def _tokens(token: int) -> Array:
    return np.array([[token]], np.int64)


def _run(model: str, file: str, feeds: dict[str, Array]) -> list[Array]:
    found: list[Array] = _session(model, file).run(None, feeds)
    return found


@cache
def _session(model: str, file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(FILES[model][file]().SerializeToString(), options, providers=["CPUExecutionProvider"])

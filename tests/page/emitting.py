"""Makes small bundles with ONNX alone: a transducer that emits tokens where the sound gets loud, and a detector that
returns the loudness. A frame is loud if the mean of its absolute values is above 0.1.

The transducer emits one token where a loud frame follows one that is not loud, and a second one if the mean is above
0.6. Two is its maximum for one frame. The tokens are `a`, `b`, `c`, `a`, and so on, with probabilities 0.75 and 0.5.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
from onnx import parser

from service.repository.manifest import (
    FILE_NAME,
    Manifest,
    Parity,
    StateSpec,
    StepSpec,
    TensorSpec,
    VocabularySpec,
)
from service.repository.specs import Dtype
from service.repository.steps import EmitsSpec

HISTORY = 4
"""How many tokens a session's state holds."""
_HEAD = '<ir_version: 10, opset_import: ["" : 22]>\n'
_DETECTOR = """step (float[batch, time, {size}] frames, int64[batch, 1] count)
    => (float[batch, time, 1] values, int64[batch, 1] next_count)
<int64[1] last = {{2}}, int64[1] one = {{1}}>
{{
    sizes = Abs (frames)
    values = ReduceMean <keepdims = 1> (sizes, last)
    next_count = Add (count, one)
}}"""
_TRANSDUCER = """step (
    float[batch, time, {size}] frames, int64[batch, 1] loud, int64[batch, {history}] emitted, int64[batch, 1] count
) => (
    float[batch, time, 6] values, int64[batch, 1] next_loud, int64[batch, {history}] next_emitted,
    int64[batch, 1] next_count
)
<
    int64[1] last = {{2}}, int64[1] one = {{1}}, int64[1] three = {{3}}, int64[1] end = {{1000}},
    float[1] loudly = {{0.1}}, float[1] very = {{0.6}},
    float[1] first = {{-0.2876821}}, float[1] second = {{-0.6931472}}
>
{{
    sizes = Abs (frames)
    mean = ReduceMean <keepdims = 0> (sizes, last)
    is_loud = Greater (mean, loudly)
    next_loud = Cast <to = 7> (is_loud)
    is_new = Greater (next_loud, loud)
    is_very = Greater (mean, very)
    are_two = And (is_new, is_very)
    num_one = Cast <to = 7> (is_new)
    num_two = Cast <to = 7> (are_two)
    num = Add (num_one, num_two)
    next_count = Add (count, num)
    place = Mod (count, three)
    id_one = Add (place, one)
    after = Mod (id_one, three)
    id_two = Add (after, one)
    told_one = Mul (id_one, num_one)
    told_two = Mul (id_two, num_two)
    later = Slice (emitted, one, end, one)
    with_one = Concat <axis = 1> (later, id_one)
    once = Where (is_new, with_one, emitted)
    rest = Slice (once, one, end, one)
    with_two = Concat <axis = 1> (rest, id_two)
    next_emitted = Where (are_two, with_two, once)
    whole = Concat <axis = 1> (num, num_two, told_one, told_two)
    numbers = Cast <to = 1> (whole)
    share_one = Cast <to = 1> (num_one)
    share_two = Cast <to = 1> (num_two)
    score_one = Mul (share_one, first)
    score_two = Mul (share_two, second)
    row = Concat <axis = 1> (numbers, score_one, score_two)
    values = Unsqueeze (row, one)
}}"""


def write_transducer(repository: Path, model: str, size: int, sample_rate: int | None = None) -> None:
    """Writes a transducer to `repository/model/1`. size: numbers in a frame."""
    folder = repository / model / "1"
    folder.mkdir(parents=True)
    (folder / "target.txt").write_text("<blank>\na\nb\nc\n")
    emits = EmitsSpec(blank_id=0, max_symbols=2, history="emitted", count="count")
    target = VocabularySpec(file="target.txt", size=4, tokenizer="characters")
    states = (_state("loud", 1), _state("emitted", HISTORY), _state("count", 1))
    step = _step(size, 6).model_copy(update={"emits": emits})
    _write(
        folder,
        _TRANSDUCER.format(size=size, history=HISTORY),
        step,
        states=states,
        target_vocabulary=target,
        sample_rate=sample_rate,
    )


def write_detector(repository: Path, model: str, size: int, sample_rate: int) -> None:
    """Writes a detector to `repository/model/1`. size: samples in a frame."""
    folder = repository / model / "1"
    folder.mkdir(parents=True)
    _write(folder, _DETECTOR.format(size=size), _step(size, 1), states=(_state("count", 1),), sample_rate=sample_rate)


def _step(size: int, num_values: int) -> StepSpec:
    return StepSpec(
        file="step.onnx",
        features=_tensor("frames", "float32", "batch", "time", size),
        values=_tensor("values", "float32", "batch", "time", num_values),
        max_chunk=1,
    )


def _state(name: str, size: int) -> StateSpec:
    return StateSpec(name=name, input=_tensor(name, "int64", "batch", size), output=f"next_{name}")


def _tensor(name: str, dtype: Dtype, *shape: str | int) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})


def _write(folder: Path, graph: str, step: StepSpec, **more: Any) -> None:
    """Writes the graph and the manifest. more: further fields of the manifest."""
    onnx.save(parser.parse_model(_HEAD + graph), folder / step.file)
    manifest = Manifest(
        format_version=2,
        model=folder.parent.name,
        version=1,
        description="a model that hears how loud it is",
        step=step,
        max_tokens=20,
        digests={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()},
        exported_with={"onnx": onnx.__version__},
        parity=Parity(tolerance=0.0, max_abs_error={}, num_rows=0),
        evaluation={},
        **more,
    )
    (folder / FILE_NAME).write_text(manifest.model_dump_json())

"""ONNX files of others, served after `export onnx`, over a bare loop of ONNX Runtime over the same files.

The models have the shapes of widely used ones, and random weights: a voice activity detector (a convolution over a
frame of samples, an LSTM, a window), a speech enhancer (complex bins, a cache, a GRU over the bands of a frame; its
batch size is fixed at one) and a plain LSTM. Sessions step together, with 32 steps in each message.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure import Report, Row, Sample, alternate, seconds_a_call
from benchmarks.processes import Running, Seen, service
from benchmarks.setup import Setup, notes
from benchmarks.subjects import REPOSITORY

SESSIONS, STEPS = 64, 32
FRAME_S = 0.032
"""Duration of a detector's frame, and so the time limit of its step."""
LARGE_MESSAGES = {"max-message-bytes": 32 * 1024 * 1024}
_BOUND = 0.8
_MOST_STREAMS = 4096


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model.

    size: numbers that a step consumes.
    shape: the shape in which the file reads a row of them, window included.
    rows: the batch size that the file is fixed to; None: any.
    window: how many of the previous numbers each run reads again.
    """

    name: str
    make: Callable[[], onnx.ModelProto]
    flags: tuple[str, ...]
    size: int
    shape: tuple[int, ...]
    rows: int | None = None
    window: int = 0

    @property
    def repository(self) -> Path:
        """The folder of its bundle and its file."""
        return REPOSITORY.parent / "foreign"

    @property
    def file(self) -> Path:
        """Its ONNX file."""
        return self.repository / f"{self.name}.onnx"

    def export(self) -> None:
        """Writes its file and its bundle, unless they exist."""
        if (self.repository / self.name / "1" / "manifest.json").exists():
            return
        self.repository.mkdir(parents=True, exist_ok=True)
        onnx.save(self.make(), self.file)
        command = [sys.executable, "-m", "export", "onnx", str(self.file), "--name", self.name, "--replace"]
        command += ["--to", str(self.repository), *self.flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def foreign(setup: Setup) -> Report:
    """Steps a second of 64 sessions, 32 steps a message, over a bare loop of one step a run in the same row mode; and
    the number of real-time streams of a detector that are answered within their frame."""
    report = Report(
        "foreign", f"steps/s of {SESSIONS} sessions, {STEPS} steps a message, over a bare loop", notes=notes()
    )
    for model in MODELS:
        model.export()
    with service(MODELS[0].repository, setup.wire, LARGE_MESSAGES) as carousel:
        for model in MODELS:
            load = setup.load(model=model.name, streams=SESSIONS, features=model.size, chunk=STEPS, in_flight=2)
            report.rows.append(
                alternate(
                    model.name,
                    lambda load=load: setup.sample("vectors", carousel, load),  # type: ignore[misc]
                    lambda model=model: _bare(model, setup),  # type: ignore[misc]
                    unit="steps/s",
                    bound=_BOUND,
                    rounds=setup.rounds,
                )
            )
        report.rows.append(_real_time(setup, carousel, MODELS[0]))
    return report


def _bare(model: Foreign, setup: Setup) -> Sample:
    """Measures a loop over the file: all rows in one run, or one row a run where the file takes one. The loop keeps the
    windows."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model.file), options, providers=["CPUExecutionProvider"])
    rows = model.rows or SESSIONS
    outputs = [one.name for one in session.get_outputs()]
    names = [one.name for one in session.get_inputs()][1:]
    zeros = [
        np.zeros([axis if isinstance(axis, int) else rows for axis in one.shape], np.float32)
        for one in session.get_inputs()[1:]
    ]
    states = [list(zeros) for _ in range(SESSIONS // rows)]
    fresh = np.random.default_rng(0).standard_normal((rows, model.size)).astype(np.float32)
    before = [np.zeros((rows, model.window), np.float32) for _ in states]
    read = session.get_inputs()[0].name

    def step() -> None:
        for place, now in enumerate(states):
            whole = np.concatenate([before[place], fresh], axis=1) if model.window else fresh
            feeds: dict[str, Any] = {read: whole.reshape(rows, *model.shape), **dict(zip(names, now, strict=True))}
            _, *states[place] = session.run(outputs, feeds)
            if model.window:
                before[place] = whole[:, -model.window :]

    step()
    return Sample(SESSIONS / seconds_a_call(step, for_s=min(1.0, setup.seconds)))


def _real_time(setup: Setup, carousel: Running, model: Foreign) -> Row:
    """Doubles the number of real-time streams of frames until the 99th percentile of the latency exceeds a frame's
    duration."""
    streams, best, seen_best = 32, 0, dict[str, float]()
    while streams <= _MOST_STREAMS:
        rate = streams / FRAME_S
        load = setup.load(model=model.name, streams=streams, features=model.size, rate=rate)
        seen: Seen = setup.seen("vector_arrivals", carousel, load)
        if seen["p99_s"] > FRAME_S or seen.get("errors", 0):
            break
        best, seen_best = streams, dict(seen)
        streams *= 2
    p99 = seen_best.get("p99_s", float("inf"))
    return Row(
        f"{best} real-time streams",
        p99,
        FRAME_S,
        p99 / FRAME_S,
        [p99 / FRAME_S],
        "s",
        1.0,
        "at most",
        seen_best.get("cpu_us"),
    )


def _weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng((7, *name.encode())).standard_normal(shape) * 0.1
    return numpy_helper.from_array(values.astype(np.float32), name)


def _integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _value(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _lstm_weights(inputs: int, size: int) -> list[TensorProto]:
    return [_weight("W", 1, 4 * size, inputs), _weight("R", 1, 4 * size, size), _weight("B", 1, 8 * size)]


def _lstm() -> onnx.ModelProto:
    """Makes an LSTM: 40 features per step, 64 units, 8 output values."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "hn", "cn"], hidden_size=64),
        helper.make_node("Squeeze", ["hn", "zero"], ["shown"]),
        helper.make_node("MatMul", ["shown", "O"], ["y"]),
    ]
    states = [_value("h", 1, "batch", 64), _value("c", 1, "batch", 64)]
    ends = [_value("hn", 1, "batch", 64), _value("cn", 1, "batch", 64)]
    weights = [*_lstm_weights(40, 64), _weight("O", 64, 8), _integers("zero", 0)]
    return _model(nodes, [_value("x", "batch", 40), *states], [_value("y", "batch", 8), *ends], weights)


def _detector() -> onnx.ModelProto:
    """Makes a detector that reads 576 samples, the last 64 of the previous step and 512 new ones: filters, their power,
    convolutions, an LSTM, a probability."""
    nodes = [
        helper.make_node("Unsqueeze", ["samples", "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "filters"], ["filtered"], strides=[128]),
        helper.make_node("Mul", ["filtered", "filtered"], ["power"]),
        helper.make_node("Conv", ["power", "K1", "b1"], ["c1"], pads=[1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "K2", "b2"], ["c2"], strides=[2], pads=[1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("ReduceMean", ["r2"], ["pooled"], axes=[2], keepdims=0),
        helper.make_node("Unsqueeze", ["pooled", "zero"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "hn", "cn"], hidden_size=128),
        helper.make_node("Squeeze", ["hn", "zero"], ["shown"]),
        helper.make_node("MatMul", ["shown", "O"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["speech"]),
    ]
    weights = [
        _weight("filters", 130, 1, 256),
        _weight("K1", 128, 130, 3),
        _weight("b1", 128),
        _weight("K2", 64, 128, 3),
        _weight("b2", 64),
        *_lstm_weights(64, 128),
        _weight("O", 128, 1),
        _integers("zero", 0),
        _integers("one", 1),
    ]
    states = [_value("h", 1, "batch", 128), _value("c", 1, "batch", 128)]
    ends = [_value("hn", 1, "batch", 128), _value("cn", 1, "batch", 128)]
    return _model(nodes, [_value("samples", "batch", 576), *states], [_value("speech", "batch", 1), *ends], weights)


def _enhancer() -> onnx.ModelProto:
    """Makes an enhancer of 65 complex bins per step: a convolution over time with a cache, a GRU over the bins, a mask.
    One row a run."""
    gru = [_weight("GW", 1, 3 * 16, 16), _weight("GR", 1, 3 * 16, 16), _weight("GB", 1, 6 * 16)]
    nodes = [
        helper.make_node("Transpose", ["mix"], ["channels"], perm=[0, 3, 2, 1]),  # [1, 2, 1, 65]
        helper.make_node("Concat", ["cache", "channels"], ["seen"], axis=2),  # [1, 2, 3, 65]
        helper.make_node("Slice", ["seen", "from", "to", "along"], ["cache_out"]),
        helper.make_node("Conv", ["seen", "K1", "b1"], ["c1"], pads=[0, 1, 0, 1]),  # [1, 16, 1, 65]
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Reshape", ["r1", "bands"], ["by_band"]),  # [16, 65]
        helper.make_node("Transpose", ["by_band"], ["bands_first"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["bands_first", "zero"], ["over_time"]),  # one step, 65 rows
        helper.make_node("GRU", ["over_time", "GW", "GR", "GB", "", "memory"], ["", "memory_out"], hidden_size=16),
        helper.make_node("MatMul", ["memory_out", "M"], ["mask_rows"]),  # [1, 65, 2]
        helper.make_node("Unsqueeze", ["mask_rows", "two"], ["mask"]),  # [1, 65, 1, 2]
        helper.make_node("Mul", ["mix", "mask"], ["clean"]),
    ]
    weights = [
        *gru,
        _weight("K1", 16, 2, 3, 3),
        _weight("b1", 16),
        _weight("M", 16, 2),
        _integers("bands", 16, 65),
        _integers("from", 1),
        _integers("to", 3),
        _integers("along", 2),
        _integers("zero", 0),
        _integers("two", 2),
    ]
    inputs = [_value("mix", 1, 65, 1, 2), _value("cache", 1, 2, 2, 65), _value("memory", 1, 65, 16)]
    outputs = [_value("clean", 1, 65, 1, 2), _value("cache_out", 1, 2, 2, 65), _value("memory_out", 1, 65, 16)]
    return _model(nodes, inputs, outputs, weights)


MODELS = (
    Foreign("detector", _detector, ("--window", "samples=64"), 512, (576,), window=64),
    Foreign("enhancer", _enhancer, ("--batch-axis", "memory=0"), 130, (65, 1, 2), rows=1),
    Foreign("lstm", _lstm, (), 40, (40,)),
)

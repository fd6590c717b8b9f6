"""Runs one model in PyTorch or in ONNX Runtime, behind one protocol, so that proofs can compare them.

Arrays have the interface's shapes and dtypes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.errors import ExportError, first_line
from export.graphs import Graphs
from export.interface import Interface
from service.repository.halves import left_out
from service.repository.uniform import groups_of

Array = NDArray[Any]
IntArray = NDArray[np.int64]


PROVEN_K = 2
"""Number of best tokens that proofs request; every vocabulary has as many."""


class Runner(Protocol):
    """Runs a model's encoder, its step and its readout."""

    float_dtype: type[np.floating]
    """The float type of its arithmetic, states and contexts."""

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """Returns the encoder's outputs in the interface's order.

        source: [B, S], or features [B, S, F], padded with 0; lengths: [B].
        """

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """Runs one step or a chunk of steps of every row.

        tokens: [B, T], or features [B, T, F]; lengths: [B]; carried: every state, then every context. Returns the
        logits [B, T, V], undefined past a row's length, then every next state, then the outputs of the heads, if there
        are heads: [B, T] or [B, T, `PROVEN_K`] each.
        """

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """Returns the readout's logits [B, V]; None without a readout. carried: every state, then every context."""


class OnnxRunner:
    """Runs the exported graphs on ONNX Runtime's CPU provider with one intra-op thread, like the server."""

    float_dtype: type[np.floating] = np.float32

    def __init__(self, graphs: Graphs, interface: Interface) -> None:
        self.step_session = session_of(graphs.step)
        self._loop_session = None if graphs.loop is None else session_of(graphs.loop)
        self.encoder_session = None if graphs.encoder is None else session_of(graphs.encoder)
        self.readout_session = None if graphs.readout is None else session_of(graphs.readout)
        self._interface = interface
        self._outputs = [tensor.name for tensor in (*interface.step_outputs, *interface.head_outputs)]
        self._carried = [tensor.name for tensor in interface.carried_inputs]
        given = interface.step.constants
        self._constants = {one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in given}
        self._uniform = [
            (place, state.input.shape.index("batch"))
            for place, state in enumerate(interface.states)
            if state.is_uniform
        ]

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """See `Runner`. Raises ValueError for a model without an encoder."""
        if self.encoder_session is None:
            raise ValueError("this model has no encoder")
        names = [tensor.name for tensor in self._interface.encoder_inputs]
        outputs = [tensor.name for tensor in self._interface.encoder_outputs]
        found: list[Array] = self.encoder_session.run(outputs, dict(zip(names, (source, lengths), strict=True)))
        return found

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """See `Runner`."""
        interface = self._interface
        outputs = self._outputs
        feeds: dict[str, Array] = {interface.step.input.name: tokens}
        session = self.step_session
        if interface.step.lengths is not None and (self._loop_session is None or tokens.shape[1] > 1):
            feeds[interface.step.lengths.name] = lengths
            session = session if self._loop_session is None else self._loop_session
        feeds |= dict(zip(self._carried, carried, strict=True))
        if interface.step.top_k is not None:
            feeds[interface.step.top_k.k.name] = np.array([PROVEN_K], np.int64)
        groups: list[list[int]] = []
        if interface.step.max_rows is not None:
            groups = [[row] for row in range(len(tokens))]
        elif self._uniform:
            groups = groups_of([(carried[place], axis) for place, axis in self._uniform], len(tokens))
        if not groups:
            found: list[Array] = session.run(outputs, feeds | self._constants)
            return found
        return self._step_apart(session, outputs, feeds, groups)

    def _step_apart(
        self,
        session: Any,
        outputs: list[str],
        feeds: dict[str, Array],
        groups: list[list[int]],
    ) -> list[Array]:
        """Runs each group of rows by itself, like the server: for graphs of one row, or of one value for all rows."""
        interface = self._interface
        axes = {state.input.name: state.input.shape.index("batch") for state in interface.states}
        along = {state.output: axes[state.input.name] for state in interface.states}
        results = [
            session.run(
                outputs,
                {name: array.take(rows, axis=axes.get(name, 0)) for name, array in feeds.items()} | self._constants,
            )
            for rows in groups
        ]
        order = np.argsort([row for rows in groups for row in rows])
        joined = [
            np.concatenate(column, along.get(name, 0))
            for name, column in zip(outputs, zip(*results, strict=True), strict=True)
        ]
        return [one.take(order, axis=along.get(name, 0)) for name, one in zip(outputs, joined, strict=True)]

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """See `Runner`."""
        if self.readout_session is None:
            return None
        given = dict(zip(self._carried, carried, strict=True))
        feeds = {tensor.name: given[tensor.name] for tensor in self._interface.readout_inputs}
        (logits,) = self.readout_session.run(None, feeds)
        return np.asarray(logits)


class TorchRunner:
    """Runs the PyTorch modules in evaluation mode on the CPU, in double precision.

    In single precision, PyTorch's own rounding would count as an error of the graphs: on g2p-en its logits differ from
    the double-precision ones by 1e-4, as much as ONNX Runtime's do.
    """

    float_dtype: type[np.floating] = np.float64

    def __init__(self, step: nn.Module, encoder: nn.Module | None = None) -> None:
        self._step = copy.deepcopy(step).double()
        self._encoder = None if encoder is None else copy.deepcopy(encoder).double()

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """See `Runner`. Raises ValueError for a model without an encoder."""
        if self._encoder is None:
            raise ValueError("this model has no encoder")
        return _call(self._encoder, _double(source), lengths)

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """See `Runner`."""
        return _call(self._step, _double(tokens), lengths, *carried)

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """Returns None: a readout is compared bit by bit with the step's logits, not with PyTorch."""
        return None


def session_of(graph: bytes | onnx.ModelProto | Path) -> Any:  # onnxruntime ships no types
    """Returns an ONNX Runtime session configured like the server's: on the CPU, with one thread, without log messages.

    graph: a Path if its weights are in files next to it. Raises what ONNX Runtime raises.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors raise exceptions, and the warnings are about intended properties
    content = graph.SerializeToString() if isinstance(graph, onnx.ModelProto) else graph
    disabled = left_out(content.read_bytes() if isinstance(content, Path) else content)
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def loaded(model: onnx.ModelProto, what: str) -> Any:
    """Returns the session of a user's file. what: its name in the ExportError that says that it cannot be loaded."""
    try:
        return session_of(model)
    except Exception as error:  # ONNX Runtime raises its own error classes
        raise ExportError(f"ONNX Runtime cannot load {what}: {first_line(error)}") from error


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limits PyTorch to one thread in its body: threads do not speed up such small rows, and on a busy machine one late
    thread makes a run a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(generator: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Returns random numbers: normally distributed floats, or 0 and 1, which are ids of every vocabulary."""
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _double(array: Array) -> Array:
    """Returns features in double precision, and ids unchanged."""
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


@torch.inference_mode()
def _call(module: nn.Module, *arrays: Array) -> list[Array]:
    outputs: tuple[Tensor, ...] = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
    return [output.numpy() for output in outputs]

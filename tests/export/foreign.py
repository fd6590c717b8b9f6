"""ONNX files as other exporters write them: with other opsets, layouts and names than ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    values = np.random.default_rng((seed, *name.encode())).standard_normal(shape) * 0.4
    return numpy_helper.from_array(values.astype(np.float32), name)


def value(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def save(  # noqa: PLR0917
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto],
    opset: int = 16,
) -> Path:
    graph = helper.make_graph(list(nodes), "foreign", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def voice_activity(path: Path, *, samples: int | str = "samples", rows: int | str = "batch") -> Path:
    """Writes a typical voice activity detector. A step reads a frame of samples and returns a probability.

    One state contains the hidden and the cell state of an LSTM. The sampling rate is a scalar input.
    """
    size = 8
    nodes = [
        helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["rate", "usual_rate"], ["pitch"]),
        helper.make_node("MatMul", ["input", "front"], ["front_out"]),
        helper.make_node("Mul", ["front_out", "pitch"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["frame"]),
        helper.make_node("Unsqueeze", ["frame", "zero"], ["sequence"]),
        helper.make_node("Split", ["state", "halves"], ["h", "c"], axis=0),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "hn", "cn"], hidden_size=size),
        helper.make_node("Concat", ["hn", "cn"], ["stateN"], axis=0),
        helper.make_node("Squeeze", ["hn", "zero"], ["shown"]),
        helper.make_node("MatMul", ["shown", "last"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]
    weights = [
        weight("front", 32, size),
        weight("W", 1, 4 * size, size),
        weight("R", 1, 4 * size, size),
        weight("B", 1, 8 * size),
        weight("last", size, 1),
        numpy_helper.from_array(np.array(16000.0, np.float32), "usual_rate"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1, 1], np.int64), "halves"),
    ]
    inputs = [
        value("input", [rows, samples]),
        value("state", [2, rows, size]),
        value("sr", [], TensorProto.INT64),
    ]
    return save(path, nodes, inputs, [value("output", [rows, 1]), value("stateN", [2, rows, size])], weights)


def time_first_tokens(path: Path, *, opset: int = 11) -> Path:
    """Writes a language model of an old opset. Its token ids have 32 bits, time is its first axis, and its states are
    h0 and c0, which become hn and cn."""
    size, tokens = 8, 6
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["embedded"]),
        helper.make_node("LSTM", ["embedded", "W", "R", "B", "", "h0", "c0"], ["y", "hn", "cn"], hidden_size=size),
        helper.make_node("Squeeze", ["y"], ["shown"], axes=[1]),
        helper.make_node("MatMul", ["shown", "last"], ["logits"]),
    ]
    weights = [
        weight("embedding", tokens, 5),
        weight("W", 1, 4 * size, 5),
        weight("R", 1, 4 * size, size),
        weight("B", 1, 8 * size),
        weight("last", size, tokens),
    ]
    inputs = [
        value("ids", ["seq_len", "batch_size"], TensorProto.INT32),
        value("h0", [1, "batch_size", size]),
        value("c0", [1, "batch_size", size]),
    ]
    outputs = [
        value("logits", ["seq_len", "batch_size", tokens]),
        value("hn", [1, "batch_size", size]),
        value("cn", [1, "batch_size", size]),
    ]
    return save(path, nodes, inputs, outputs, weights, opset)


def denoiser(path: Path) -> Path:
    """Writes a typical denoiser: one row only, a frame of complex bins as input and output, and two caches."""
    size, bins = 8, 6
    nodes = [
        helper.make_node("Reshape", ["mix", "flat"], ["frame"]),
        helper.make_node(
            "GRU",
            ["frame", "W", "R", "B", "", "inter_cache"],
            ["", "inter_cache_out"],
            hidden_size=size,
            linear_before_reset=1,
        ),
        helper.make_node("Add", ["conv_cache", "frame_flat"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["conv_cache_out"]),
        helper.make_node("Squeeze", ["frame", "zero"], ["frame_flat"]),
        helper.make_node("Squeeze", ["inter_cache_out", "zero"], ["shown"]),
        helper.make_node("MatMul", ["shown", "last"], ["mask_of_shown"]),
        helper.make_node("Mul", ["mask_of_shown", "conv_cache_out"], ["enhanced"]),
        helper.make_node("Reshape", ["enhanced", "unflat"], ["enh"]),
    ]
    nodes = [nodes[0], nodes[4], *nodes[1:4], *nodes[5:]]
    weights = [
        weight("W", 1, 3 * size, 2 * bins),
        weight("R", 1, 3 * size, size),
        weight("B", 1, 6 * size),
        weight("last", size, 2 * bins),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1, 1, 2 * bins], np.int64), "flat"),
        numpy_helper.from_array(np.array([1, bins, 1, 2], np.int64), "unflat"),
    ]
    inputs = [value("mix", [1, bins, 1, 2]), value("conv_cache", [1, 2 * bins]), value("inter_cache", [1, 1, size])]
    outputs = [
        value("enh", [1, bins, 1, 2]),
        value("conv_cache_out", [1, 2 * bins]),
        value("inter_cache_out", [1, 1, size]),
    ]
    return save(path, nodes, inputs, outputs, weights)


def batch_norm_of_rows(path: Path) -> Path:
    """Writes a model that centres its input over the batch, so that other rows change a row's result."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Add", ["memory", "centred"], ["memory_out"]),
        helper.make_node("Tanh", ["memory_out"], ["y"]),
    ]
    inputs = [value("x", ["batch", 4]), value("memory", ["batch", 4])]
    return save(path, nodes, inputs, [value("y", ["batch", 4]), value("memory_out", ["batch", 4])], [], 13)

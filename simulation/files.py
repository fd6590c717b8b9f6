"""Tiny models as ONNX files, such as users export: a transducer of three files and a translator of two.

They compute with integers like `arithmetic`: a state is a hash of everything that was consumed. Shapes: `B` rows,
`S` tokens of a source, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simulation.arithmetic import VOCABULARY_SIZE

FRAME_SIZE = 2
"""Numbers in a frame."""
MAX_SYMBOLS = 2
"""Maximum tokens that a frame emits."""
HISTORY = 6
"""How many of its last tokens a session of the transducer keeps."""
SOURCE_EOS_ID = 1
"""The token that the server appends to each source."""
_PRIMES = (65521.0, 65519.0)
_FACTORS = (31.0, 37.0)
_CONSTANTS = (1.0, 3.0)
_OPSET, _IR_VERSION = 17, 8


def _encoder_of_frames() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Squeeze", ["frame", "axis"], ["numbers"]),  # [B, 2]
        *_hashed("heard", "numbers", "next_heard"),
        helper.make_node("Unsqueeze", ["next_heard", "axis"], ["encoded"]),
    ]
    inputs = [_floats("frame", "batch", 1, FRAME_SIZE), _floats("heard", "batch", 2)]
    outputs = [_floats("encoded", "batch", 1, 2), _floats("next_heard", "batch", 2)]
    return helper.make_graph(nodes, "encoder", inputs, outputs, [*_of_hashes(), _whole("axis", [1])])


def _predictor() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["embedded"], axis=0),  # [B, 1, 2]
        helper.make_node("Squeeze", ["embedded", "axis"], ["numbers"]),
        *_hashed("said", "numbers", "next_said"),
        helper.make_node("Unsqueeze", ["next_said", "axis"], ["predicted"]),
    ]
    inputs = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch", 1]), _floats("said", "batch", 2)]
    outputs = [_floats("predicted", "batch", 1, 2), _floats("next_said", "batch", 2)]
    return helper.make_graph(nodes, "predictor", inputs, outputs, [*_of_hashes(), _embedding(), _whole("axis", [1])])


def _joiner() -> onnx.GraphProto:
    """The logits are a hash of both inputs. For about half of the inputs, the blank's logit is the largest."""
    bias = np.zeros(VOCABULARY_SIZE, np.float32)
    bias[0] = 5.0
    nodes = [
        helper.make_node("Mul", ["predicted", "three"], ["mixed"]),
        helper.make_node("Add", ["encoded", "mixed"], ["sum"]),
        *_logits("sum", "hashed"),
        helper.make_node("Add", ["hashed", "bias"], ["logits"]),
    ]
    inputs = [_floats("encoded", "batch", 2), _floats("predicted", "batch", 2)]
    weights = [*_of_logits(), numpy_helper.from_array(bias, "bias"), _numbers("three", [3.0])]
    return helper.make_graph(nodes, "joiner", inputs, [_floats("logits", "batch", VOCABULARY_SIZE)], weights)


def _encoder_of_sources() -> onnx.GraphProto:
    """memory [B, S, 2] depends on each token and its place; hidden [B, 2] is a hash of all tokens."""
    nodes = [
        helper.make_node("Gather", ["embedding", "source"], ["embedded"], axis=0),
        helper.make_node("Mul", ["embedded", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "ones"], ["counting"]),
        helper.make_node("CumSum", ["counting", "one"], ["places"]),
        helper.make_node("Mul", ["embedded", "places"], ["memory"]),
        helper.make_node("Mul", ["memory", "places"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mod", ["sum", "primes"], ["hidden"], fmod=1),
    ]
    weights = [_embedding(), _numbers("zeros", [0.0]), _numbers("ones", [1.0]), _numbers("primes", _PRIMES)]
    weights += [_whole("axis", [1]), numpy_helper.from_array(np.array(1, np.int64), "one")]
    inputs = [helper.make_tensor_value_info("source", TensorProto.INT64, ["batch", "length"])]
    outputs = [_floats("memory", "batch", "length", 2), _floats("hidden", "batch", 2)]
    return helper.make_graph(nodes, "encoder", inputs, outputs, weights)


def _decoder() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["embedded"], axis=0),
        helper.make_node("Squeeze", ["embedded", "axis"], ["numbers"]),
        helper.make_node("ReduceMean", ["memory"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Floor", ["mean"], ["looked"]),
        helper.make_node("Add", ["numbers", "looked"], ["both"]),
        *_hashed("hidden", "both", "next_hidden"),
        *_logits("next_hidden", "hashed"),
        helper.make_node("Unsqueeze", ["hashed", "axis"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch", 1]), _floats("hidden", "batch", 2)]
    inputs.append(_floats("memory", "batch", "length", 2))
    outputs = [_floats("logits", "batch", 1, VOCABULARY_SIZE), _floats("next_hidden", "batch", 2)]
    weights = [*_of_hashes(), *_of_logits(), _embedding(), _whole("axis", [1])]
    return helper.make_graph(nodes, "decoder", inputs, outputs, weights)


def _hashed(state: str, numbers: str, following: str) -> list[onnx.NodeProto]:
    """Returns nodes for following = (state * factors + numbers + constants) mod primes, [B, 2]."""
    names = [f"{state}/{part}" for part in ("product", "sum", "more")]
    return [
        helper.make_node("Mul", [state, "factors"], [names[0]]),
        helper.make_node("Add", [names[0], numbers], [names[1]]),
        helper.make_node("Add", [names[1], "constants"], [names[2]]),
        helper.make_node("Mod", [names[2], "primes"], [following], fmod=1),
    ]


def _of_hashes() -> list[TensorProto]:
    return [_numbers("factors", _FACTORS), _numbers("constants", _CONSTANTS), _numbers("primes", _PRIMES)]


def _logits(state: str, gives: str) -> list[onnx.NodeProto]:
    """Returns nodes for the logits [B, V], multiples of 1/8, of a state [B, 2], as `arithmetic._logits` computes them.
    Element by element, because the order of a sum could change its bits."""
    nodes = []
    for place in (0, 1):
        nodes.append(helper.make_node("Gather", [state, f"place{place}"], [f"{gives}/{place}"], axis=1))
        nodes.append(helper.make_node("Mul", [f"{gives}/{place}", f"mixing{place}"], [f"{gives}/mixed{place}"]))
    return [
        *nodes,
        helper.make_node("Add", [f"{gives}/mixed0", f"{gives}/mixed1"], [f"{gives}/sum"]),
        helper.make_node("Mod", [f"{gives}/sum", "remainder"], [f"{gives}/rest"], fmod=1),
        helper.make_node("Div", [f"{gives}/rest", "eighths"], [f"{gives}/parts"]),
        helper.make_node("Sub", [f"{gives}/parts", "six"], [gives]),
    ]


def _of_logits() -> list[TensorProto]:
    tokens = range(VOCABULARY_SIZE)
    return [
        _whole("place0", [0]),
        _whole("place1", [1]),
        _numbers("mixing0", [token + 3.0 for token in tokens]),
        _numbers("mixing1", [token * token + 5.0 for token in tokens]),
        _numbers("remainder", [97.0]),
        _numbers("eighths", [8.0]),
        _numbers("six", [6.0]),
    ]


def _embedding() -> TensorProto:
    rows = [[token * 7.0 + 2.0, token * 11.0 + 5.0] for token in range(VOCABULARY_SIZE)]
    return numpy_helper.from_array(np.array(rows, np.float32), "embedding")


def _numbers(name: str, values: Iterable[float]) -> TensorProto:
    return numpy_helper.from_array(np.array(list(values), np.float32), name)


def _whole(name: str, values: Sequence[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _floats(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: Callable[[], onnx.GraphProto]) -> onnx.ModelProto:
    model = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


TRANSDUCER: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "encoder": partial(_model, _encoder_of_frames),
    "predictor": partial(_model, _predictor),
    "joiner": partial(_model, _joiner),
}
"""The transducer's files, in the order in which the exporter takes them. The blank is token 0."""
TWO_FILES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "encoder": partial(_model, _encoder_of_sources),
    "decoder": partial(_model, _decoder),
}
"""The translator's files. Its decoder uses the mean of its source's memory, so padding would change its output."""

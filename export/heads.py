"""The heads of a step graph: outputs for the likeliest token and the k likeliest tokens, computed from the logits.

1. ONNX Runtime's inference builds run the whole graph whatever is fetched (`only_execute_path_to_fetches` is for its
   training builds). So a head that is slow compared with a step runs only on request: the k best are inside an `If` on
   the input `k`, which is 0 by default. When k is 0, this head costs about a microsecond.
2. The likeliest token is always computed. ONNX Runtime's ArgMax is scalar, 330 us for 64 rows of 8,000; its ReduceMax
   is vectorised. For a large vocabulary, the graph takes the maximum of each block, then searches the best one: 40 us.
3. Both heads rank the logits. Log-probabilities are rounded and can tie. So the first of the k best is next_token.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.surgery import element_type
from service.repository.manifest import StepSpec, TensorSpec, TopKSpec

NEXT_TOKEN = TensorSpec(name="next_token", dtype="int64", shape=("batch", "time"))
TOP_K = TopKSpec(
    k=TensorSpec(name="k", dtype="int64", shape=(1,)),
    log_probabilities=TensorSpec(name="top_log_probabilities", dtype="float32", shape=("batch", "time", "k")),
    token_ids=TensorSpec(name="top_token_ids", dtype="int64", shape=("batch", "time", "k")),
)

_MIN_VOCABULARY_IN_BLOCKS = 512
_MIN_BLOCK, _MAX_BLOCK = 16, 128


def add_heads(model: onnx.ModelProto, step: StepSpec) -> None:
    """Adds the heads that `step` names, and the input `k`, to a step graph whose output is the logits."""
    size = step.output.shape[-1]
    if step.next_token is not None and isinstance(size, int):
        _add_next_token(model.graph, step.output.name, step.next_token, size)
    if step.top_k is not None:
        _add_top_k(model.graph, step.output.name, step.top_k)


def _add_next_token(graph: onnx.GraphProto, logits: str, output: TensorSpec, size: int) -> None:
    graph.output.append(_value(output))
    block = _block_size(size)
    if block is None:
        graph.node.append(helper.make_node("ArgMax", [logits], [output.name], axis=2, keepdims=0))
        return
    constants = {"block_shape": [0, 0, size // block, block], "block_size": [block], "in_block": [3], "token": [2]}
    graph.initializer.extend(_int64(f"next_token/{name}", values) for name, values in constants.items())
    values = ("blocks", "maxima", "best_block", "candidates", "first", "place", "best")
    own = {name: f"next_token/{name}" for name in (*constants, *values)}
    graph.node.extend(
        [
            helper.make_node("Reshape", [logits, own["block_shape"]], [own["blocks"]]),  # [B, T, V / block, block]
            helper.make_node("ReduceMax", [own["blocks"], own["in_block"]], [own["maxima"]], keepdims=0),
            helper.make_node("ArgMax", [own["maxima"]], [own["best_block"]], axis=2),  # [B, T, 1]
            helper.make_node("GatherND", [own["blocks"], own["best_block"]], [own["candidates"]], batch_dims=2),
            helper.make_node("ArgMax", [own["candidates"]], [own["place"]], axis=2),  # [B, T, 1]
            helper.make_node("Mul", [own["best_block"], own["block_size"]], [own["first"]]),
            helper.make_node("Add", [own["first"], own["place"]], [own["best"]]),
            helper.make_node("Squeeze", [own["best"], own["token"]], [output.name]),
        ]
    )


def _block_size(size: int) -> int | None:
    """Returns the block size, a divisor of the vocabulary's size; None: rank the vocabulary without blocks."""
    if size < _MIN_VOCABULARY_IN_BLOCKS:
        return None
    return max((block for block in range(_MIN_BLOCK, _MAX_BLOCK + 1) if size % block == 0), default=None)


def _add_top_k(graph: onnx.GraphProto, logits: str, top_k: TopKSpec) -> None:
    outputs = (top_k.log_probabilities, top_k.token_ids)
    asked = helper.make_graph(
        [
            helper.make_node("TopK", [logits, top_k.k.name], ["top_k/logits", "top_k/asked_ids"], axis=2),
            helper.make_node("LogSoftmax", [logits], ["top_k/all"], axis=2),
            helper.make_node("GatherElements", ["top_k/all", "top_k/asked_ids"], ["top_k/asked"], axis=2),
        ],
        "asked",
        [],
        [_without_shape("top_k/asked", outputs[0]), _without_shape("top_k/asked_ids", outputs[1])],
    )
    nothing = helper.make_graph(
        [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.zeros((0, 0, 0), dtype)))
            for name, dtype in (("top_k/none", np.float32), ("top_k/no_ids", np.int64))
        ],
        "not_asked",
        [],
        [_without_shape("top_k/none", outputs[0]), _without_shape("top_k/no_ids", outputs[1])],
    )
    graph.input.append(_value(top_k.k))
    graph.initializer.extend([_int64(top_k.k.name, [0]), _int64("top_k/zero", [0])])
    graph.node.append(helper.make_node("Greater", [top_k.k.name, "top_k/zero"], ["top_k/is_asked"]))
    names = [output.name for output in outputs]
    graph.node.append(helper.make_node("If", ["top_k/is_asked"], names, then_branch=asked, else_branch=nothing))
    graph.output.extend(_value(output) for output in outputs)


def _int64(name: str, values: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, element_type(tensor.dtype), list(tensor.shape))


def _without_shape(name: str, tensor: TensorSpec) -> onnx.ValueInfoProto:
    """Returns a branch's output without a shape: the two branches have different shapes."""
    return helper.make_tensor_value_info(name, element_type(tensor.dtype), None)

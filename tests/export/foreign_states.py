"""ONNX files whose graphs show what their states are: recurrent nodes, loops, branches, plain cells and caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export.foreign import Shape, save, value, weight


def _ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _gates(kind: str, reads: int, size: int, *, prefix: str = "", directions: int = 1) -> list[TensorProto]:
    """Returns the weights W, R and B of a recurrent node. prefix: put before their names."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * size
    return [
        weight(f"{prefix}W", directions, gates, reads),
        weight(f"{prefix}R", directions, gates, size),
        weight(f"{prefix}B", directions, 2 * gates),
    ]


def lstm_step(path: Path, *, begins: Sequence[str] = ("hx", "cx"), ends: Sequence[str] = ("hy", "cy")) -> Path:
    """Writes an LSTM that returns its hidden state. begins, ends: the names of its first and last hidden and cell
    state."""
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", *begins], ["", "h", "c"], name="rnn", hidden_size=8),
        helper.make_node("Identity", ["h"], ["y"]),
        helper.make_node("Identity", ["h"], [ends[0]]),
        helper.make_node("Identity", ["c"], [ends[1]]),
    ]
    shape: Shape = [1, "batch", 8]
    inputs = [value("x", [1, "batch", 4]), *(value(name, shape) for name in begins)]
    outputs = [value("y", shape), *(value(name, shape) for name in ends)]
    return save(path, nodes, inputs, outputs, _gates("LSTM", 4, 8))


def two_grus(path: Path, *, begins: bool = False, ends: bool = False) -> Path:
    """Writes two GRUs. The state of the second is an input and an output.

    begins, ends: whether the first GRU's first state is an input, and its last state an output.
    """
    first = ["x", "aW", "aR", "aB", "", "ha" if begins else ""]
    nodes = [
        helper.make_node("GRU", first, ["ya", "ha_n" if ends else "spare"], name="a", hidden_size=6),
        helper.make_node("Squeeze", ["ya", "one"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "bW", "bR", "bB", "", "h"], ["yb", "hn"], name="b", hidden_size=6),
        helper.make_node("Squeeze", ["yb", "one"], ["shown"]),
        helper.make_node("MatMul", ["shown", "last"], ["y"]),
    ]
    weights = [
        *_gates("GRU", 4, 6, prefix="a"),
        *_gates("GRU", 6, 6, prefix="b"),
        weight("last", 6, 2),
        _ints("one", 1),
    ]
    shape: Shape = [1, "batch", 6]
    inputs = [value("x", ["time", "batch", 4]), value("h", shape), *([value("ha", shape)] if begins else [])]
    outputs = [value("y", ["time", "batch", 2]), value("hn", shape), *([value("ha_n", shape)] if ends else [])]
    return save(path, nodes, inputs, outputs, weights)


def lstm_without_state(
    path: Path,
    time: int | str = "time",
    first: float | None = None,
    mixes: str = "",
    gives_last: bool = False,
) -> Path:
    """Writes an LSTM over a whole sequence, whose first states are not inputs.

    first: a constant for every place of its first hidden state.
    mixes: an operator over time before it, `ReduceMean`.
    gives_last: whether its last states are outputs.
    """
    size = 6
    begin = [] if first is None else ["", "first", "zeros"]
    nodes = [
        *([helper.make_node(mixes, ["x"], ["mean"], axes=[0], keepdims=1)] if mixes else []),
        *([helper.make_node("Sub", ["x", "mean"], ["mixed"])] if mixes else []),
        helper.make_node(
            "LSTM", ["mixed" if mixes else "x", "W", "R", "B", *begin], ["Y", "hn", "cn"], name="/r/rnn", hidden_size=6
        ),
        helper.make_node("Squeeze", ["Y", "one"], ["shown"]),
        helper.make_node("MatMul", ["shown", "last"], ["y"]),
    ]
    weights = [*_gates("LSTM", 4, size), weight("last", size, 2), _ints("one", 1)]
    if first is not None:
        zeros = np.zeros((1, 1, size), np.float32)
        weights += [numpy_helper.from_array(zeros + first, "first"), numpy_helper.from_array(zeros, "zeros")]
    rows: int | str = "batch" if first is None else 1
    outputs = [value("y", [time, rows, 2])]
    if gives_last:
        outputs += [value(name, [1, rows, size]) for name in ("hn", "cn")]
    return save(path, nodes, [value("x", [time, rows, 4])], outputs, weights)


def both_directions(path: Path, direction: str = "bidirectional") -> Path:
    """Writes a GRU that reads backwards or in both directions. Its state is an input and an output."""
    count = 2 if direction == "bidirectional" else 1
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "B", "", "h0"], ["Y", "hn"], name="rnn", hidden_size=6),
        helper.make_node("ReduceMean", ["Y"], ["y"], axes=[1], keepdims=0),
    ]
    nodes[0].attribute.append(helper.make_attribute("direction", direction))
    inputs = [value("x", ["time", "batch", 4]), value("h0", [count, "batch", 6])]
    outputs = [value("y", ["time", "batch", 6]), value("hn", [count, "batch", 6])]
    return save(path, nodes, inputs, outputs, _gates("GRU", 4, 6, directions=count))


def two_paths(path: Path) -> Path:
    """Writes a denoiser of two paths: a bidirectional GRU over the 5 bands of a frame, which starts from zero in every
    frame, and then a GRU over time for each band."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["bands"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["bands", "aW", "aR", "aB"], ["Ya"], name="over_bands", hidden_size=3),
        helper.make_node("Transpose", ["Ya"], ["each"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["each", "to_bands"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "bW", "bR", "bB", "", "s"], ["", "t"], name="over_time", hidden_size=4),
        helper.make_node("Reshape", ["t", "to_row"], ["y"]),
    ]
    nodes[1].attribute.append(helper.make_attribute("direction", "bidirectional"))
    weights = [
        *_gates("GRU", 2, 3, prefix="a", directions=2),
        *_gates("GRU", 6, 4, prefix="b"),
        _ints("to_bands", 1, 5, 6),
        _ints("to_row", 1, 20),
    ]
    inputs = [value("x", [1, 5, 2]), value("s", [1, 5, 4])]
    return save(path, nodes, inputs, [value("y", [1, 20]), value("t", [1, 5, 4])], weights)


def stacked(path: Path) -> Path:
    """Writes two LSTM layers. Split cuts their states from stacks, and Concat joins them. The names tell nothing."""
    layers = []
    for layer, reads in ((0, "x"), (1, "s0")):
        gates = [f"{layer}{name}" for name in "WRB"]
        lstm = [reads, *gates, "", f"h{layer}", f"c{layer}"]
        layers += [
            helper.make_node("LSTM", lstm, [f"y{layer}", f"hn{layer}", f"cn{layer}"], name=f"l{layer}", hidden_size=4),
            helper.make_node("Squeeze", [f"y{layer}", "one"], [f"s{layer}"]),
        ]
    nodes = [
        helper.make_node("Split", ["p", "halves"], ["h0", "h1"], axis=0),
        helper.make_node("Split", ["q", "halves"], ["c0", "c1"], axis=0),
        *layers,
        helper.make_node("Concat", ["hn0", "hn1"], ["u"], axis=0),
        helper.make_node("Concat", ["cn0", "cn1"], ["v"], axis=0),
        helper.make_node("ReduceMean", ["s1"], ["y"], axes=[2], keepdims=1),
    ]
    weights = [*_gates("LSTM", 4, 4, prefix="0"), *_gates("LSTM", 4, 4, prefix="1"), _ints("one", 1)]
    shape: Shape = [2, "batch", 4]
    inputs = [value("x", [1, "batch", 4]), value("p", shape), value("q", shape)]
    outputs = [value("y", [1, "batch", 1]), value("v", shape), value("u", shape)]
    return save(path, nodes, inputs, outputs, [*weights, _ints("halves", 1, 1)])


def in_branches(path: Path) -> Path:
    """Writes an `If` with an LSTM in both branches. They read their states from outside: p is the cell state."""

    def branch(name: str) -> onnx.GraphProto:
        lstm = helper.make_node(
            "LSTM", ["x", "W", "R", "B", "", "q", "p"], ["", f"{name}h", f"{name}c"], name=name, hidden_size=4
        )
        shape: Shape = [1, "batch", 4]
        return helper.make_graph([lstm], name, [], [value(f"{name}c", shape), value(f"{name}h", shape)])

    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["is_wide"]),
        helper.make_node("If", ["is_wide"], ["u", "v"], then_branch=branch("wide"), else_branch=branch("narrow")),
        helper.make_node("ReduceMean", ["v"], ["y"], axes=[2], keepdims=1),
    ]
    shape: Shape = [1, "batch", 4]
    inputs = [value("x", [1, "batch", 3]), value("p", shape), value("q", shape), value("sr", [], TensorProto.INT64)]
    outputs = [value("y", [1, "batch", 1]), value("v", shape), value("u", shape)]
    rate = numpy_helper.from_array(np.array(16000, np.int64), "rate")
    return save(path, nodes, inputs, outputs, [*_gates("LSTM", 3, 4), rate])


def scanned(path: Path, operator: str = "Scan") -> Path:
    """Writes two sums that a `Scan` or a `Loop` carries through a frame of 3 parts. The names tell nothing. The second
    sum depends on the first, so that paths alone leave two choices."""
    shape: Shape = ["batch", 4]
    one = [helper.make_node("Mul", ["x", "half"], ["part"])] if operator == "Loop" else []
    body_nodes = [
        *one,
        helper.make_node("Add", ["a", "part"], ["a_sum"]),
        helper.make_node("Mul", ["a_sum", "half"], ["a_next"]),
        helper.make_node("Add", ["b", "a_next"], ["b_sum"]),
        helper.make_node("Tanh", ["b_sum"], ["b_next"]),
        helper.make_node("Add", ["a_next", "b_next"], ["a_last"]),
    ]
    carried = [value("b", shape), value("a", shape)]
    following = [value("b_next", shape), value("a_last", shape)]
    if operator == "Scan":
        body = helper.make_graph(body_nodes, "body", [*carried, value("part", shape)], following)
        turn = [helper.make_node("Scan", ["q", "p", "x"], ["u", "v"], name="sum", body=body, num_scan_inputs=1)]
        source: Shape = [3, "batch", 4]
    else:
        body_nodes.append(helper.make_node("Identity", ["go"], ["go_on"]))
        before = [value("turn", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), *carried]
        body = helper.make_graph(body_nodes, "body", before, [value("go_on", [], TensorProto.BOOL), *following])
        turn = [helper.make_node("Loop", ["three", "", "q", "p"], ["u", "v"], name="sum", body=body)]
        source = ["batch", 4]
    nodes = [*turn, helper.make_node("ReduceMean", ["u"], ["y"], axes=[1], keepdims=1)]
    weights = [
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.array(3, np.int64), "three"),
    ]
    inputs = [value("x", source), value("p", shape), value("q", shape)]
    outputs = [value("y", ["batch", 1]), value("v", shape), value("u", shape)]
    return save(path, nodes, inputs, outputs, weights)


def plain_cell(path: Path) -> Path:
    """Writes a recurrent cell of elementary operators. The names tell nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["read"]),
        helper.make_node("MatMul", ["p", "R"], ["kept"]),
        helper.make_node("Add", ["read", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["u"]),
        helper.make_node("MatMul", ["u", "last"], ["y"]),
    ]
    weights = [weight("W", 3, 5), weight("R", 5, 5), weight("last", 5, 2)]
    inputs = [value("x", ["batch", 3]), value("p", ["batch", 5])]
    return save(path, nodes, inputs, [value("y", ["batch", 2]), value("u", ["batch", 5])], weights)


def written_lstm(path: Path) -> Path:
    """Writes an LSTM of elementary operators. One product computes all its gates, as in most such files. Its hidden and
    cell state have the same shape."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["read"]),
        helper.make_node("MatMul", ["h", "R"], ["kept"]),
        helper.make_node("Add", ["read", "kept"], ["sum"]),
        helper.make_node("Split", ["sum", "quarters"], ["i0", "f0", "o0", "g0"], axis=1),
        *(helper.make_node("Sigmoid", [f"{gate}0"], [gate]) for gate in ("i", "f", "o")),
        helper.make_node("Tanh", ["g0"], ["g"]),
        helper.make_node("Mul", ["f", "c"], ["left"]),
        helper.make_node("Mul", ["i", "g"], ["new"]),
        helper.make_node("Add", ["left", "new"], ["cn"]),
        helper.make_node("Tanh", ["cn"], ["shown"]),
        helper.make_node("Mul", ["o", "shown"], ["hn"]),
        helper.make_node("MatMul", ["hn", "last"], ["y"]),
    ]
    weights = [weight("W", 3, 20), weight("R", 5, 20), weight("last", 5, 2), _ints("quarters", 5, 5, 5, 5)]
    inputs = [value("x", ["batch", 3]), value("h", ["batch", 5]), value("c", ["batch", 5])]
    outputs = [value("y", ["batch", 2]), value("hn", ["batch", 5]), value("cn", ["batch", 5])]
    return save(path, nodes, inputs, outputs, weights)


def written_grus(path: Path) -> Path:
    """Writes two GRU layers of elementary operators, without a reset gate."""
    nodes = [helper.make_node("Identity", ["x"], ["y0"])]
    for layer in (1, 2):
        source, before = f"y{layer - 1}", f"h{layer}"
        nodes += [
            helper.make_node("Concat", [source, before], [f"both{layer}"], axis=1),
            helper.make_node("MatMul", [f"both{layer}", "Wz"], [f"z{layer}_sum"]),
            helper.make_node("Sigmoid", [f"z{layer}_sum"], [f"z{layer}"]),
            helper.make_node("MatMul", [f"both{layer}", "Wn"], [f"n{layer}_sum"]),
            helper.make_node("Tanh", [f"n{layer}_sum"], [f"n{layer}"]),
            helper.make_node("Sub", ["one", f"z{layer}"], [f"r{layer}"]),
            helper.make_node("Mul", [f"r{layer}", f"n{layer}"], [f"new{layer}"]),
            helper.make_node("Mul", [f"z{layer}", before], [f"left{layer}"]),
            helper.make_node("Add", [f"new{layer}", f"left{layer}"], [f"h{layer}_out"]),
            helper.make_node("MatMul", [f"h{layer}_out", "Wy"], [f"y{layer}"]),
        ]
    weights = [weight("Wz", 8, 5), weight("Wn", 8, 5), weight("Wy", 5, 3)]
    weights.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
    inputs = [value("x", ["batch", 3]), value("h1", ["batch", 5]), value("h2", ["batch", 5])]
    outputs = [value("y2", ["batch", 3]), value("h1_out", ["batch", 5]), value("h2_out", ["batch", 5])]
    return save(path, nodes, inputs, outputs, weights)


def delay_line(path: Path) -> Path:
    """Writes a delay line of the last two steps. The first state, multiplied by a gate and added to the input, becomes
    the second."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Identity", ["x"], ["p_out"]),
        helper.make_node("Mul", ["p", "gate"], ["gated"]),
        helper.make_node("Add", ["gated", "x"], ["q_out"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    shape: Shape = ["batch", 3]
    inputs, outputs = [value(name, shape) for name in ("x", "p", "q")], [value("y", shape)]
    return save(path, nodes, inputs, [*outputs, value("p_out", shape), value("q_out", shape)], [])


def cached_convolution(path: Path) -> Path:
    """Writes a convolution over the last two frames and a new one, beside a GRU. A cache keeps the last two frames."""
    nodes = [
        helper.make_node("Concat", ["p", "x"], ["frames"], axis=2),
        helper.make_node("Slice", ["frames", "one", "four", "two"], ["u"]),
        helper.make_node("Conv", ["frames", "kernel"], ["frame"]),
        helper.make_node("Transpose", ["frame"], ["sequence"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["sequence", "W", "R", "B", "", "q"], ["", "v"], name="rnn", hidden_size=6),
        helper.make_node("ReduceMean", ["v"], ["y"], axes=[0, 2], keepdims=0),
    ]
    weights = [*_gates("GRU", 5, 6), weight("kernel", 5, 4, 3), _ints("one", 1), _ints("two", 2), _ints("four", 4)]
    inputs = [value("x", ["batch", 4, 1]), value("p", ["batch", 4, 2]), value("q", [1, "batch", 6])]
    outputs = [value("y", ["batch"]), value("v", [1, "batch", 6]), value("u", ["batch", 4, 2])]
    return save(path, nodes, inputs, outputs, weights)

"""Graphs that compute in 16-bit floats are loaded without the optimizations that would crash the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from service.repository.halves import has_halves


def product(kind: int, *, nested: bool = False) -> bytes:
    """Returns a model of a product after a transposition. nested: whether it is in the branches of an `If`."""
    weight = numpy_helper.from_array(np.ones((3, 2), helper.tensor_dtype_to_np_dtype(kind)), "w")
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", kind, ["a", "b", 3])], [value("y", kind, ["b", "a", 2])]
    graph = helper.make_graph(nodes, "product", inputs, outputs, [weight])
    if nested:
        branch = helper.make_graph(nodes, "branch", [], outputs, [weight])
        chosen = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([chosen], "if", [value("c", TensorProto.BOOL, []), *inputs], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("nested", [False, True])
def test_weights_of_16_bits_are_found_wherever_they_are(nested: bool) -> None:
    assert has_halves(product(TensorProto.FLOAT16, nested=nested))
    assert not has_halves(product(TensorProto.FLOAT, nested=nested))


def test_content_that_is_not_a_model_has_no_16_bit_weights() -> None:
    content = product(TensorProto.FLOAT16)
    found = [has_halves(content[:cut]) for cut in range(len(content))]
    assert not found[len(content) // 2]
    assert found == sorted(found)
    assert not has_halves(b"\x0f\x0f no model")


@pytest.mark.parametrize("nested", [False, True])
def test_a_product_of_16_bit_floats_is_loaded_and_run(nested: bool, tmp_path: Path) -> None:
    """The graph is loaded in a child process, which must not crash."""
    (tmp_path / "half.onnx").write_bytes(product(TensorProto.FLOAT16, nested=nested))
    code = (
        "import sys, numpy as np\n"
        "from service.repository.runtime import RuntimeOptions\n"
        "session = RuntimeOptions().load(sys.argv[1])\n"
        "feeds = {'x': np.ones((2, 1, 3), np.float16), 'c': np.array(True)}\n"
        "(y,) = session.run(None, {one.name: feeds[one.name] for one in session.get_inputs()})\n"
        "print(y.dtype, y.shape, y.max())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "half.onnx")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "float16 (1, 2, 2) 3.0\n"), done.stderr

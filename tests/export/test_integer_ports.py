"""Integer and boolean inputs: the model reads exactly the number that a client sends as a 32-bit float, or the server
refuses the number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services import local_service

pytest.importorskip("torch")

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from carousel import AsyncClient, Client, InternalError, InvalidArgumentError
from tests.export import foreign
from tests.export.test_export_onnx import export, refusal


def counter(path: Path) -> Path:
    """Writes a model that reads a flag, which clears its state, and an integer."""
    nodes = [
        helper.make_node("Cast", ["done"], ["ended"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "ended"], ["kept"]),
        helper.make_node("Mul", ["h", "kept"], ["before"]),
        helper.make_node("Cast", ["count"], ["by"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["before", "by"], ["hn"]),
        helper.make_node("Identity", ["hn"], ["y"]),
    ]
    inputs = [
        foreign.value("count", ["batch", 1], TensorProto.INT64),
        foreign.value("done", ["batch", 1], TensorProto.BOOL),
    ]
    inputs.append(foreign.value("h", ["batch", 1]))
    outputs = [foreign.value("y", ["batch", 1]), foreign.value("hn", ["batch", 1])]
    return foreign.save(path, nodes, inputs, outputs, [numpy_helper.from_array(np.array(1.0, np.float32), "one")])


def test_the_model_reads_integers_and_flags_unchanged(tmp_path: Path) -> None:
    folder = export(counter(tmp_path / "counter.onnx"), tmp_path / "repository", "--input", "count", "--input", "done")
    assert "A step reads a vector of 2 numbers: `count` int64 [], `done` bool []." in (folder / "README.md").read_text()
    with (
        local_service(tmp_path / "repository") as running,
        Client(running.target) as client,
        client.session("foreign") as session,
    ):
        for count, done, expected in ((3, False, 3.0), (4, False, 7.0), (5, True, 5.0)):
            assert session.feed(features={"count": count, "done": done}).outputs[0].values == (expected,)
        for wrong in (1.5, float("nan"), 1e30, 2**24 + 1):
            with pytest.raises(InvalidArgumentError, match="must be whole numbers up to 16777216"):
                session.feed(features={"count": wrong, "done": False})
        assert session.position == 3


def prices(path: Path, kind: int = TensorProto.INT64) -> Path:
    """Writes a model that keeps three sums of prices in cents, and returns the largest."""
    nodes = [
        helper.make_node("Cast", ["cents"], ["paid"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["paid", "h"], ["hn"]),
        helper.make_node("ReduceMax", ["hn"], ["most"], axes=[1], keepdims=1),
    ]
    inputs = [foreign.value("cents", ["batch", 3], kind), foreign.value("h", ["batch", 3])]
    outputs = [foreign.value("most", ["batch", 1]), foreign.value("hn", ["batch", 3])]
    return foreign.save(path, nodes, inputs, outputs, [])


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_one_input_of_whole_numbers_is_served_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int
) -> None:
    """No vocabulary is needed if --input names the input."""
    file = prices(tmp_path / "prices.onnx", kind)
    found = refusal(capsys, file, tmp_path / "repository")
    assert "if they are numbers, such as a count or a price in cents, use --input cents" in found
    export(file, tmp_path / "repository", "--input", "cents")
    assert "cents has integers up to 2^24, not tokens" in capsys.readouterr().out
    with (
        local_service(tmp_path / "repository") as running,
        Client(running.target) as client,
        client.session("foreign") as session,
    ):
        model = client.model("foreign")
        assert [(port.name, port.shape) for port in model.inputs] == [("cents", (3,))]
        assert model.feature_size == 3
        assert session.feed(features={"cents": [1, 2, 2**24]}).outputs[0].outputs == {"most": (2.0**24,)}
        assert session.feed(features=[[0.0, 0.0, -(2.0**24)]]).outputs[0].values == (2.0,)
        for wrong in (0.5, 2**24 + 2, float("nan")):
            with pytest.raises(InvalidArgumentError, match="whole number"):
                session.feed(features=[[wrong, 0.0, 0.0]])
        assert session.position == 2


def test_outputs_that_are_not_integers_are_not_fed_back_to_integers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Cast", ["count"], ["by"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["h", "by"], ["hn"]),
        helper.make_node("Tanh", ["hn"], ["y"]),
    ]
    inputs = [foreign.value("count", ["batch", 1], TensorProto.INT64), foreign.value("h", ["batch", 1])]
    outputs = [foreign.value("y", ["batch", 1]), foreign.value("hn", ["batch", 1])]
    file = foreign.save(tmp_path / "count.onnx", nodes, inputs, outputs, [])
    found = refusal(capsys, file, tmp_path / "repository", "--input", "count", "--feeds-back")
    assert "--feeds-back: count int64 [batch, 1] reads integers, but a step returns floats" in found


async def test_an_index_that_the_model_does_not_have_fails_its_row_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "id"], ["looked"]),
        helper.make_node("Sum", ["x", "looked", "h"], ["hn"]),
        helper.make_node("Identity", ["hn"], ["y"]),
    ]
    inputs = [foreign.value("x", ["batch", 2]), foreign.value("id", ["batch"], TensorProto.INT64)]
    inputs.append(foreign.value("h", ["batch", 2]))
    outputs = [foreign.value("y", ["batch", 2]), foreign.value("hn", ["batch", 2])]
    file = foreign.save(tmp_path / "lookup.onnx", nodes, inputs, outputs, [foreign.weight("table", 5, 2)])
    export(file, tmp_path / "repository", "--input", "x", "--input", "id")
    with local_service(tmp_path / "repository") as running:
        async with AsyncClient(running.target) as client, client.batch("foreign") as batch:
            await batch.open_many([None] * 3)
            x = np.zeros((3, 2), np.float32)
            before = await batch.step(features={"x": x, "id": [1, 1, 3]})
            result = await batch.step(features={"x": x, "id": [1, 77, 3]})
            assert [(place, type(error)) for place, error in result.errors.items()] == [(1, InternalError)]
            after = await batch.step(features={"x": x, "id": [1, 1, 3]})
            assert list(after.positions) == [3, 2, 3]
            times = np.array([[3], [2], [3]], np.float32)
            np.testing.assert_allclose(
                np.reshape(after.values, (3, 2)), np.reshape(before.values, (3, 2)) * times, rtol=1e-5
            )


async def test_vectors_without_names_are_checked_too(tmp_path: Path) -> None:
    """The server checks them, because clients in other languages do not use names. In a step batch it checks each row
    by itself."""
    export(counter(tmp_path / "counter.onnx"), tmp_path / "repository", "--input", "count", "--input", "done")
    with local_service(tmp_path / "repository") as running:
        async with AsyncClient(running.target) as client, client.session("foreign") as session:
            for wrong in (1.5, float("nan"), float("-inf"), 2**24 + 2):
                with pytest.raises(InvalidArgumentError, match=r"feed.features.data: 'count' of vector 1 is .*: it"):
                    await session.feed(features=[[1.0, 0.0], [wrong, 0.0]])
            assert (await session.feed(features=[[2**24, 0.0]])).position == 1
            async with client.batch("foreign") as batch:
                await batch.open_many([None] * 3)
                result = await batch.step(features=[[1.0, 0.0], [0.5, 0.0], [-3.0, 0.0]])
                assert list(result.errors) == [1]
                assert "step_batch.features.data: 'count' of vector 1 is 0.5: it must be" in str(result.errors[1])
                assert list(result.positions) == [1, 0, 1]
                assert (result.values[0], result.values[2]) == (1.0, -3.0)

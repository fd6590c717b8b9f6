"""A step with several inputs and outputs, a window, a count and a start flag is served with the bits of a plain loop
over the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from carousel import AsyncClient, Client, InvalidArgumentError, Port
from examples.local_service import LocalService
from tests.cli.shell import Shell
from tests.export import foreign
from tests.export.test_export_onnx import export, manifest_of, refusal
from tests.services import local_service

OBSERVED, NEW, WINDOW, SIZE = 4, 8, 4, 6
FLAGS = ["--input", "obs", "--input", "samples", "--window", f"samples={WINDOW}", "--start", "first"]
FLAGS += ["--output", "action", "--output", "value", "--output", "seen", "--state", "count=count_out"]


def policy(path: Path) -> Path:
    """Writes a policy with several inputs and outputs.

    It reads an observation, samples that overlap those of the previous step, and whether it has just started. One of
    its states has integers. It returns two outputs of floats, and one of integers.
    """
    nodes = [
        helper.make_node("Reshape", ["obs", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "Wo"], ["looked"]),
        helper.make_node("MatMul", ["samples", "Ws"], ["listened"]),
        helper.make_node("Sum", ["looked", "listened", "h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hn"]),
        helper.make_node("Add", ["count", "one"], ["count_out"]),
        helper.make_node("MatMul", ["hn", "Wa"], ["action"]),
        helper.make_node("MatMul", ["hn", "Wv"], ["worth"]),
        helper.make_node("Cast", ["first"], ["bonus"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["worth", "bonus"], ["value"]),
        helper.make_node("Mul", ["count_out", "ten"], ["seen"]),
    ]
    weights = [
        foreign.weight("Wo", OBSERVED, SIZE),
        foreign.weight("Ws", WINDOW + NEW, SIZE),
        foreign.weight("Wa", SIZE, 3),
        foreign.weight("Wv", SIZE, 1),
        numpy_helper.from_array(np.array([0, OBSERVED], np.int64), "rows"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
        numpy_helper.from_array(np.array(10, np.int64), "ten"),
    ]
    inputs = [
        foreign.value("obs", ["batch", 1, OBSERVED]),
        foreign.value("samples", ["batch", WINDOW + NEW]),
        foreign.value("first", ["batch", 1], TensorProto.BOOL),
        foreign.value("h", ["batch", SIZE]),
        foreign.value("count", ["batch", 1], TensorProto.INT64),
    ]
    outputs = [
        foreign.value("action", ["batch", 3]),
        foreign.value("value", ["batch", 1]),
        foreign.value("seen", ["batch", 1], TensorProto.INT64),
        foreign.value("hn", ["batch", SIZE]),
        foreign.value("count_out", ["batch", 1], TensorProto.INT64),
    ]
    return foreign.save(path, nodes, inputs, outputs, weights)


class Bare:
    """A plain loop over the file."""

    def __init__(self, file: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(file))
        self._h, self._count = np.zeros((1, SIZE), np.float32), np.zeros((1, 1), np.int64)
        self._before = np.zeros(WINDOW, np.float32)
        self._first = np.ones((1, 1), bool)

    def step(self, obs: Any, samples: Any) -> dict[str, Any]:
        whole = np.concatenate([self._before, samples])
        feeds = {"obs": obs.reshape(1, 1, -1), "samples": whole[np.newaxis], "first": self._first}
        names = ["action", "value", "seen", "hn", "count_out"]
        found = dict(zip(names, self._session.run(names, feeds | {"h": self._h, "count": self._count}), strict=True))
        self._h, self._count = found.pop("hn"), found.pop("count_out")
        self._before, self._first = whole[-WINDOW:], np.zeros((1, 1), bool)
        return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy(tmp_path_factory.mktemp("made") / "policy.onnx")


@pytest.fixture(scope="module")
def service(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    to = tmp_path_factory.mktemp("repository")
    export(file, to, *FLAGS)
    with local_service(to) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def drawn(steps: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((steps, size)).astype(np.float32) for size in (OBSERVED, NEW))  # type: ignore[return-value]


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(
        np.array(found[name], np.float32).tobytes() == expected[name].astype(np.float32).tobytes() for name in expected
    )


def test_each_input_and_output_has_its_name(service: LocalService) -> None:
    inputs = (Port("obs", "float32", (OBSERVED,)), Port("samples", "float32", (NEW,)))
    outputs = (Port("action", "float32", (3,)), Port("value", "float32", ()), Port("seen", "int64", ()))
    with Client(service.target) as client:
        info = client.model("foreign")
        assert (info.inputs, info.outputs) == (inputs, outputs)
        assert (info.feature_size, info.value_size) == (OBSERVED + NEW, 5)
        with client.session("foreign") as session:
            assert (session.inputs, session.outputs) == (inputs, outputs)


def test_the_command_line_lists_named_inputs_and_outputs(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table shows them instead of the size of the whole vector."""
    monkeypatch.setenv("COLUMNS", "200")
    output = " ".join(Shell(service.target).out("models").split())
    assert f"obs [{OBSERVED}], samples [{NEW}] action [3], value, seen int64" in output


def test_steps_are_those_of_a_bare_loop(service: LocalService, file: Path) -> None:
    """In chunks and step by step, with names and as vectors."""
    obs, samples = drawn(12)
    bare = Bare(file)
    expected = [bare.step(*step) for step in zip(obs, samples, strict=True)]
    with Client(service.target) as client, client.session("foreign") as session:
        step = session.feed(features={"samples": samples[:7], "obs": obs[:7]}, every_position=True)
        assert all(map(same, (one.outputs for one in step.outputs), expected))
        assert same(
            session.feed(features={"obs": obs[7].tolist(), "samples": samples[7]}).outputs[0].outputs, expected[7]
        )
        step = session.feed(features=np.concatenate([obs[8:], samples[8:]], axis=1))
        assert same(step.outputs[0].outputs, expected[-1])
        assert step.outputs[0].values == sum((step.outputs[0].outputs[port.name] for port in session.outputs), ())


async def test_sessions_of_a_batch_have_windows_and_beginnings_of_their_own(service: LocalService, file: Path) -> None:
    obs, samples = drawn(15, seed=1)
    loops = [Bare(file) for _ in range(3)]
    async with AsyncClient(service.target) as client, client.batch("foreign") as batch:
        await batch.open_many([None, None])
        for turn in range(5):
            if turn == 3:
                await batch.open()
            rows = slice(3 * turn, 3 * turn + len(batch))
            result = await batch.step(features={"obs": obs[rows], "samples": samples[rows]})
            expected = [
                loop.step(*step) for loop, step in zip(loops, zip(obs[rows], samples[rows], strict=True), strict=False)
            ]
            assert same(result.outputs, {name: np.concatenate([one[name] for one in expected]) for name in expected[0]})


def test_copies_and_rewinds_keep_the_window_and_do_not_start_again(service: LocalService, file: Path) -> None:
    obs, samples = drawn(9, seed=2)
    steps = list(zip(obs, samples, strict=True))
    bare = Bare(file)
    expected = [bare.step(*step) for step in steps]
    with Client(service.target) as client, client.session("foreign") as session:

        def feed(of: Any, step: int) -> Any:
            return of.feed(features={"obs": steps[step][0], "samples": steps[step][1]}).outputs[0].outputs

        session.feed(features={"obs": obs[:3], "samples": samples[:3]}, mark=True)
        assert same(feed(session, 3), expected[3])
        session.rewind(3)
        assert same(feed(session, 3), expected[3])
        snapshot = client.sessions.snapshot(session.id)
        client.sessions.fork(session.id, "copy")
        client.sessions.restore(snapshot, session_id="restored")
        for name in ("copy", "restored"):
            with client.resume(name) as other:
                assert same(feed(other, 4), expected[4])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"obs": [0.0] * OBSERVED}, "feed.features has no 'samples': the model reads obs, samples"),
        (
            {"obs": [0.0] * OBSERVED, "samples": [0.0] * NEW, "rate": 1},
            "feed.features has 'rate': the model reads obs, samples",
        ),
        (
            {"obs": [[0.0] * OBSERVED] * 2, "samples": [0.0] * NEW},
            "feed.features has different numbers of steps: 2 of obs, 1 of samples",
        ),
        (
            {"obs": [0.0] * 3, "samples": [0.0] * NEW},
            "feed.features['obs'] must be numbers, [steps, 4], not [0.0, 0.0, 0.0]",
        ),
        ({"obs": "abcd", "samples": [0.0] * NEW}, "feed.features['obs'] must be numbers, [steps, 4], not 'abcd'"),
        (
            {"obs": [0.0] * OBSERVED, "samples": [0.0] * (NEW - 1) + ["x"]},
            "feed.features['samples'] must be numbers, [steps, 8]",
        ),
        ({"obs": [], "samples": []}, "feed.features['obs'] must be numbers, [steps, 4], not []"),
    ],
)
def test_inputs_that_the_model_does_not_have_are_refused(service: LocalService, features: Any, message: str) -> None:
    with Client(service.target) as client, client.session("foreign") as session:
        with pytest.raises(InvalidArgumentError) as raised:
            session.feed(features=features)
        assert message in str(raised.value)
        assert session.position == 0


def test_a_scalar_start_flag_splits_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scalar cannot be true for one row and false for another, so sessions in their first step run separately."""
    nodes = [
        helper.make_node("Cast", ["first"], ["bonus"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "bonus"], ["begun"]),
        helper.make_node("Add", ["begun", "sum"], ["sum_out"]),
        helper.make_node("Identity", ["sum_out"], ["y"]),
    ]
    inputs = [
        foreign.value("x", ["batch", 2]),
        foreign.value("sum", ["batch", 2]),
        foreign.value("first", [], TensorProto.BOOL),
    ]
    outputs = [foreign.value("y", ["batch", 2]), foreign.value("sum_out", ["batch", 2])]
    file = foreign.save(tmp_path / "first.onnx", nodes, inputs, outputs, [])
    found = refusal(capsys, file, tmp_path / "repository")
    assert "--start first if it is true only at a session's first step" in found
    folder = export(file, tmp_path / "repository", "--start", "first")
    assert "sessions run one by one" not in capsys.readouterr().out
    assert manifest_of(folder).step.max_rows is None
    with (
        local_service(tmp_path / "repository") as running,
        Client(running.target) as client,
        client.batch("foreign") as batch,
    ):
        batch.open_many([None, None])
        assert batch.step(features=[[1.0, 2.0]] * 2).values == (2.0, 3.0) * 2
        batch.open()
        assert batch.step(features=[[1.0, 1.0]] * 3).values == (3.0, 4.0) * 2 + (2.0, 2.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "obs"], "what is samples float32 [batch, 12]? read by each step: --input samples"),
        (
            ["--input", "obs", "--input", "samples", "--output", "value", "--window", "obs=4"],
            "--window obs=4: the input needs one axis besides batch and time",
        ),
        (["--input", "obs", "--input", "obs"], "--input names obs twice"),
        (["--axis", "a=1", "--axis", "a=2"], "--axis names a twice"),
        (
            ["--input", "obs", "--input", "samples", "--window", "z=4"],
            "--window names z, which the file does not have. It has: obs float32",
        ),
        (
            ["--input", "obs", "--input", "samples"],
            "which outputs does a step return? action float32 [batch, 3]; value",
        ),
    ],
)
def test_a_refusal_says_what_an_input_may_be(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    found = refusal(capsys, file, tmp_path / "repository", "--state", "count=count_out", "--start", "first", *flags)
    assert message in found
    assert found.count("\n") <= 2


def test_a_start_of_many_numbers_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--state", "count=count_out", "--input", "samples", "--input", "first", "--output", "value"]
    found = refusal(capsys, file, tmp_path / "repository", *flags, "--start", "obs")
    assert "--start obs: obs float32 [batch, 1, 4] must be one number, or one a row" in found

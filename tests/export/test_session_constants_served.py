"""What a session gets once: constants with and without a batch axis, its own number, and first values of states. Also
the flag for its last step.

The server returns, bit for bit, what a plain loop over the file returns.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from carousel import AsyncClient, Client, InvalidArgumentError, Port
from carousel.values import SessionConstant, StateTensor
from examples.local_service import LocalService
from service.repository.bundle import BundleError, load_bundle
from service.repository.manifest import FILE_NAME, sha256_of
from tests.cli.shell import Shell
from tests.export import foreign
from tests.export.test_export_onnx import export, manifest_of, refusal
from tests.services import local_service

READ, SIZE, SPEAKER, LANGUAGES = 4, 8, 3, 5
FIRST = 0.25
FLAGS = ["--session-constant", "language=0", "--session-constant", "language=3", "--session-constant", "speaker"]
FLAGS += ["--session-constant", "gain=1", "--session-id", "number", "--end", "is_last", "--start", "is_first"]
FLAGS += ["--initial", f"h={FIRST}"]
Vectors = NDArray[np.float32]


def write_model(path: Path) -> Path:
    """Writes a model that reads a language, a speaker, a gain and a session's number, and flags for the first and the
    last step."""
    nodes = [
        helper.make_node("MatMul", ["x", "Wx"], ["heard"]),
        helper.make_node("MatMul", ["speaker", "Ws"], ["who"]),
        helper.make_node("Gather", ["languages", "language"], ["which"], axis=0),
        helper.make_node("Mul", ["heard", "gain"], ["louder"]),
        helper.make_node("Sum", ["louder", "who", "which", "h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hn"]),
        helper.make_node("MatMul", ["hn", "Wo"], ["said"]),
        helper.make_node("Cast", ["is_last"], ["last"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["last", "one"], ["last_column"]),
        helper.make_node("Cast", ["is_first"], ["first"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["number"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "tiny"], ["own"]),
        helper.make_node("Sum", ["said", "last_column", "first", "own"], ["y"]),
    ]
    weights = [
        foreign.weight("Wx", READ, SIZE),
        foreign.weight("Ws", SPEAKER, SIZE),
        foreign.weight("languages", LANGUAGES, SIZE),
        foreign.weight("Wo", SIZE, 8),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array(2.0**-24, np.float32), "tiny"),
    ]
    inputs = [
        foreign.value("x", ["batch", READ]),
        foreign.value("speaker", ["batch", SPEAKER]),
        foreign.value("language", [], TensorProto.INT64),
        foreign.value("gain", ["batch", 1]),
        foreign.value("is_last", ["batch"], TensorProto.BOOL),
        foreign.value("is_first", [], TensorProto.BOOL),
        foreign.value("number", ["batch", 1], TensorProto.INT32),
        foreign.value("h", ["batch", SIZE]),
    ]
    outputs = [foreign.value("y", ["batch", 8]), foreign.value("hn", ["batch", SIZE])]
    return foreign.save(path, nodes, inputs, outputs, weights)


class Bare:
    """A plain loop over the file."""

    def __init__(self, file: Path, number: int, speaker: Vectors, language: int = 0, gain: float = 1.0) -> None:
        self._session = onnxruntime.InferenceSession(str(file))
        self._given = {
            "number": np.array([[number]], np.int32),
            "speaker": speaker[np.newaxis],
            "language": np.array(language),
            "gain": np.array([[gain]], np.float32),
        }
        self._h, self._is_first = np.full((1, SIZE), FIRST, np.float32), True

    def step(self, x: Vectors, *, is_last: bool = False) -> Vectors:
        feeds = {"x": x[np.newaxis], "is_last": np.array([is_last]), "is_first": np.array(self._is_first), "h": self._h}
        y, self._h = self._session.run(["y", "hn"], feeds | self._given)
        self._is_first = False
        return np.asarray(y[0])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("made") / "model.onnx")


@pytest.fixture(scope="module")
def repository(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("repository")
    export(file, to, *FLAGS)
    return to


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def drawn(seed: int, steps: int) -> tuple[Vectors, Vectors]:
    generator = np.random.default_rng(seed)
    of_steps = generator.standard_normal((steps, READ)).astype(np.float32)
    return of_steps, generator.standard_normal(SPEAKER).astype(np.float32)


def number_of(client: Client, session_id: str) -> int:
    """Returns the number that a session was given. It is in the session's state."""
    (tensor,) = client.sessions.get_state(session_id, "number")
    return int(np.frombuffer(tensor.data, tensor.dtype)[0])


def same(found: Sequence[float], expected: Vectors) -> bool:
    return np.array(found, np.float32).tobytes() == expected.tobytes()


def test_a_model_lists_its_session_constants(service: LocalService, repository: Path) -> None:
    with Client(service.target) as client:
        info = client.model("foreign")
    assert info.constants == (
        SessionConstant(Port("language", "int64", ()), (0.0,), ((0.0,), (3.0,))),
        SessionConstant(Port("speaker", "float32", (SPEAKER,)), (), ()),
        SessionConstant(Port("gain", "float32", (1,)), (1.0,), ()),
    )
    assert info.inputs == (Port("x", "float32", (READ,)), Port("is_last", "bool", (), is_end=True))
    assert info.max_batch_rows == 0
    assert manifest_of(repository / "foreign" / "1").format_version == 2


def test_the_card_lists_session_constants_and_proofs(repository: Path) -> None:
    card = (repository / "foreign" / "1" / "README.md").read_text()
    for line in (
        "| h | state with a first value other than zeros | float32 | [batch, 8] |",
        "| language | session constant: 0 or 3 | int64 | [batch] |",
        "| speaker | session constant | float32 | [batch, 3] |",
        "| gain | session constant, 1 by default | float32 | [batch, 1] |",
        "| number | number of the session | int32 | [batch, 1] |",
        "`step.onnx` advances a batch by one step, and `loop.onnx` a ragged batch by several.",
        "And a row's outputs were found bit-identical alone and in batches",
    ):
        assert line in card


@pytest.mark.parametrize(("language", "gain"), [(None, None), (3, 0.5), (0, 1.0)])
def test_steps_are_those_of_a_bare_loop(
    service: LocalService, file: Path, language: int | None, gain: float | None
) -> None:
    """In chunks, from the first to the last step."""
    xs, speaker = drawn(1, 7)
    given: dict[str, Any] = {"speaker": speaker} | ({} if language is None else {"language": language, "gain": gain})
    with Client(service.target) as client, client.session("foreign", constants=given) as session:
        bare = Bare(file, number_of(client, session.id), speaker, language or 0, 1.0 if gain is None else gain)
        step = session.feed(features={"x": xs[:5]}, every_position=True)
        assert all(same(one.values, bare.step(x)) for one, x in zip(step.outputs, xs, strict=False))
        step = session.feed(features={"x": xs[5:]}, every_position=True, end=True)
        assert same(step.outputs[0].values, bare.step(xs[5]))
        assert same(step.outputs[1].values, bare.step(xs[6], is_last=True))


def test_end_in_a_batch_applies_to_all_sessions_or_to_each(service: LocalService, file: Path) -> None:
    xs, speaker = drawn(1, 2)
    with Client(service.target) as client, client.batch("foreign") as batch:
        batch.open_many([None, None, None], constants={"speaker": speaker})
        bares = [Bare(file, number_of(client, name), speaker, 0, 1.0) for name in batch.session_ids]
        first = [xs[0], xs[0], xs[0]]
        with pytest.raises(InvalidArgumentError, match="3 steps, but end has 2 flags: give one for each session"):
            batch.step(features={"x": first}, end=[True, False])
        values = batch.step(features={"x": first}, end=[False, True, False]).values
        size = len(values) // 3
        for at, bare in enumerate(bares):
            assert same(values[at * size : (at + 1) * size], bare.step(xs[0], is_last=at == 1))
        values = batch.step(features={"x": [xs[1], xs[1]]}, places=[0, 2], end=True).values
        for at, bare in enumerate((bares[0], bares[2])):
            assert same(values[at * size : (at + 1) * size], bare.step(xs[1], is_last=True))


async def test_sessions_with_different_constants_step_in_one_batch(service: LocalService, file: Path) -> None:
    """A step batch has sessions of two languages, some of them in their first step. They run separately, and each has
    its own bits."""
    with Client(service.target) as client:
        async with AsyncClient(service.target) as other, other.batch("foreign") as batch:
            loops = []
            for place in range(6):
                _, speaker = drawn(place, 1)
                given = {"speaker": speaker.tolist(), "language": 3 * (place % 2)}
                await batch.open(constants=given, session_id=f"row-{place}")
                loops.append(Bare(file, number_of(client, f"row-{place}"), speaker, 3 * (place % 2)))
            assert len({number_of(client, f"row-{place}") for place in range(6)}) == 6
            for turn in range(4):
                xs, _ = drawn(100 + turn, 6)
                places = list(range(6)) if turn % 2 else [0, 1, 2, 5]
                is_last = np.zeros(len(places))
                result = await batch.step(features={"x": xs[places], "is_last": is_last}, places=places)
                for row, place in enumerate(places):
                    assert same(result.values[8 * row : 8 * row + 8], loops[place].step(xs[place])), (turn, place)


def test_copies_of_a_session_keep_its_constants(service: LocalService, file: Path) -> None:
    """Rewind, fork, snapshot and restore give the same bits. A copy also keeps the session's number."""
    xs, speaker = drawn(5, 4)
    with Client(service.target) as client:
        with client.session("foreign", constants={"speaker": speaker, "language": 3}) as session:
            bare = Bare(file, number_of(client, session.id), speaker, 3)
            expected = [bare.step(x) for x in xs]
            session.feed(features={"x": xs[:2]}, mark=True)
            assert same(session.feed(features={"x": xs[2]}).outputs[0].values, expected[2])
            session.rewind(2)
            assert same(session.feed(features={"x": xs[2]}).outputs[0].values, expected[2])
            fork = client.sessions.fork(session.id)
            snapshot = client.sessions.snapshot(session.id)
            assert same(session.feed(features={"x": xs[3]}).outputs[0].values, expected[3])
        for name in (fork.session_id, client.sessions.restore(snapshot).session_id):
            with client.resume(name) as moved:
                assert same(moved.feed(features={"x": xs[3]}).outputs[0].values, expected[3])


def test_the_command_line_gives_constants_and_ends_with_the_file(
    service: LocalService, file: Path, tmp_path: Path
) -> None:
    shell = Shell(service.target)
    xs, speaker = drawn(8, 70)
    (tmp_path / "speaker.txt").write_text(" ".join(map(repr, speaker.tolist())))
    (tmp_path / "x.csv").write_text("".join(",".join(map(repr, x.tolist())) + "\n" for x in xs))
    given = ["--constant", f"speaker=@{tmp_path / 'speaker.txt'}", "--constant", "language=3", "--id", "typed"]
    lines = shell.out("stream", "foreign", str(tmp_path / "x.csv"), *given, "--json").splitlines()
    answers = [json.loads(line) for line in lines]
    with (
        Client(service.target) as client,
        client.session("foreign", session_id="typed", constants={"speaker": speaker}),
    ):
        number = number_of(client, "typed")
    bare = Bare(file, number, speaker, 3)
    expected = [bare.step(x, is_last=at == len(xs) - 1) for at, x in enumerate(xs)]
    assert [one["position"] for one in answers] == list(range(1, 71))
    assert all(same(one["outputs"]["y"], y) for one, y in zip(answers, expected, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--constant", "speaker"], "'speaker' must be NAME=NUMBER, or NAME=@FILE"),
        (["--constant", "speaker=1,2"], "speaker has 2 numbers, but foreign reads [3]"),
        (["--constant", "speaker=a"], "speaker = 'a' must be numbers"),
        (["--constant", "speaker=@gone"], "speaker: gone cannot be read: No such file or directory"),
        (["--constant", "number=1"], "foreign has language, speaker, gain, but not 'number'"),
        (["--constant", "gain=1", "--constant", "gain=2"], "gain is given twice"),
        (["--constant", "gain=1", "--resume", "--id", "a"], "--constant cannot be used with --resume"),
    ],
)
def test_constants_that_do_not_fit_are_wrong_commands(service: LocalService, words: list[str], message: str) -> None:
    done = Shell(service.target).run("stream", "foreign", *words, code=2)
    assert message in " ".join(done.stderr.decode().replace("│", "").split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "open.constants['speaker'] is missing, and foreign has no default for it: expected float32 [3]"),
        ({"speaker": [1, 2]}, "open.constants['speaker'].shape = [2] must be [3]"),
        ({"speaker": [1, 2, 3], "language": 1}, "open.constants['language'] = 1 must be one of 0, 3"),
        ({"speaker": [1, 2, 3], "language": 0.5}, "open.constants['language'].data must be whole numbers up to"),
        (
            {"speaker": [1, 2, 3], "tongue": 1},
            "open.constants has an unknown constant 'tongue': foreign has language, speaker, gain",
        ),
        (
            {"speaker": [1, 2, 3], "number": 1},
            "open.constants has an unknown constant 'number': foreign has language, speaker, gain",
        ),
        ({"speaker": "me"}, "open.constants['speaker'] must be numbers"),
        (
            {"speaker": [[1, 2], [3]]},
            "open.constants['speaker'] must be numbers that fit 32-bit floats",
        ),
        ({"speaker": [1, 2, 3], "language": 2**24 + 1}, "whole numbers up to 16777216"),
        ({"speaker": [1, 2, 1e39]}, "open.constants['speaker'] must be numbers that fit 32-bit floats"),
        ({1: 2}, "open.constants has the name 1: it must be a string"),
        ([1], "open.constants must be a dict of values by name, not [1]"),
    ],
)
def test_invalid_session_constants_are_refused(service: LocalService, given: dict[str, Any], message: str) -> None:
    with Client(service.target) as client:
        with pytest.raises(InvalidArgumentError, match=r"constants") as refused:
            client.session("foreign", constants=given)
        assert message in str(refused.value)
        with client.session("foreign", constants={"speaker": [0, 0, 0]}):
            pass


def test_end_requires_named_inputs(service: LocalService) -> None:
    given = {"speaker": [0, 0, 0]}
    x: Any = [0.0] * READ
    with Client(service.target) as client, client.session("foreign", constants=given) as session:
        with pytest.raises(InvalidArgumentError, match="end=True needs a dict of features by name"):
            session.feed(features=[[*x, 0.0]], end=True)
        with pytest.raises(InvalidArgumentError, match="the end flag 'is_last' is also given"):
            session.feed(features={"x": x, "is_last": 0}, end=True)
        assert session.position == 0


def test_constants_cannot_be_changed_to_values_that_the_model_does_not_have(service: LocalService) -> None:
    with Client(service.target) as client, client.session("foreign", constants={"speaker": [0, 0, 0]}) as session:
        client.sessions.set_state(session.id, StateTensor("language", "int64", (), struct.pack("<q", 3)))
        with pytest.raises(InvalidArgumentError, match=re.escape("tensors[0].data: language = 1 must be one of 0, 3")):
            client.sessions.set_state(session.id, StateTensor("language", "int64", (), struct.pack("<q", 1)))
        (tensor,) = client.sessions.get_state(session.id, "language")
        assert struct.unpack("<q", tensor.data) == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("language=3", []), "--session-constant language=0: give all allowed values of language int64 []"),
        (("", ["--session-constant", "nothing"]), "--session-constant names nothing"),
        (("", ["--constant", "gain=1"]), "--constant and --session-constant both name gain"),
        (("", ["--input", "is_last"]), "--input and --end both name is_last"),
        (("speaker", ["--session-constant", "speaker=1,2"]), "--session-constant speaker has 2 values"),
        (
            ("language", ["--session-constant", "language=0.5", "--session-constant", "language=1"]),
            "takes integers from",
        ),
        (("number", ["--session-id", "x", "--input", "number"]), "--session-id x: x float32 [batch, 4] must be one"),
        (("is_last", ["--end", "x", "--input", "is_last"]), "--end x: x float32 [batch, 4] must be one number a row"),
        (("h=", ["--initial", "h=1,2"]), "--initial h: it has 2 numbers, but h float32 [batch, 8] needs 8 a row"),
        (
            ("language", ["--session-constant", "language=nan", "--session-constant", "language=1"]),
            "takes integers from",
        ),
        (("gain", ["--session-constant", "gain=inf"]), "--session-constant gain=inf: give a finite number"),
        (("gain", ["--session-constant", "gain=1e39"]), "gain=1e+39: give a finite number in the range of float32"),
        (("language=3", ["--session-constant", "language=0"]), "give all allowed values of language int64 []"),
        (("", ["--feeds-back"]), "--feeds-back and --end cannot be combined"),
        (("h=", ["--initial", "h=nan"]), "--initial h=nan: give a finite number"),
        (("h=", ["--initial", "x=1"]), "--initial names x, which is not a state. The states: h"),
        (("h=", ["--initial", "h=gone.npy"]), "--initial: gone.npy does not exist"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    file: Path, tmp_path: Path, changes: tuple[str, list[str]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out, flags = changes
    pairs = zip(FLAGS[::2], FLAGS[1::2], strict=True)
    kept = [part for pair in pairs if not (left_out and pair[1].startswith(left_out)) for part in pair]
    assert message in refusal(capsys, file, tmp_path / "repository", *kept, *flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"what is this", "initial.h.npy is not a NumPy array"),
        (np.zeros(3, np.float32), "initial.h.npy is float32 [3], but state h is float32 [8]"),
        (np.zeros(SIZE), "initial.h.npy is float64 [8], but state h is float32 [8]"),
    ],
)
def test_invalid_first_values_are_refused(
    repository: Path, tmp_path: Path, content: bytes | NDArray[Any], message: str
) -> None:
    folder = Path(shutil.copytree(repository / "foreign" / "1", tmp_path / "foreign" / "1"))
    if isinstance(content, bytes):
        (folder / "initial.h.npy").write_bytes(content)
    else:
        np.save(folder / "initial.h.npy", content)
    manifest = json.loads((folder / FILE_NAME).read_text())
    manifest["digests"]["initial.h.npy"] = sha256_of(folder / "initial.h.npy")
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(message)):
        load_bundle(folder)

"""The server returns what a foreign file returns alone: rows are batched if possible, and run one by one otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
from numpy.typing import NDArray

from carousel import AsyncClient, Client, InvalidArgumentError
from examples.local_service import LocalService
from export.__main__ import main
from tests.export import foreign
from tests.reference import ReferenceSession
from tests.services import local_service

FRAME = 32


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a repository of a voice activity detector, a denoiser of one row, a model without gates, and a language
    model with time as its first axis."""
    made, to = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("repository")
    names = made / "names"
    names.write_text("<s>\n</s>\na\nb\nc\nd\n")
    flags = {
        "vad": (foreign.voice_activity, ["--constant", "sr=16000", "--axis", f"samples={FRAME}"]),
        "denoiser": (foreign.denoiser, []),
        "norm": (foreign.batch_norm_of_rows, ["--force-state"]),
        "lm": (foreign.time_first_tokens, ["--vocabulary", str(names), "--bos", "0", "--eos", "1"]),
    }
    for name, (make, given) in flags.items():
        file = make(made / f"{name}.onnx")
        assert main(["onnx", str(file), "--name", name, "--to", str(to), *given]) == 0
    return to


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def frames(count: int, size: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def bits(values: object) -> bytes:
    return np.array(values, np.float32).tobytes()


@pytest.mark.parametrize(("model", "size"), [("vad", FRAME), ("denoiser", 12)])
async def test_many_streams_of_frames_have_the_same_results_as_alone(
    service: LocalService, repository: Path, model: str, size: int
) -> None:
    """Runs 24 sessions at once, with chunks of different sizes."""

    async def run(client: AsyncClient, number: int) -> None:
        fed = frames(30, size, number)
        reference = ReferenceSession(repository / model / "1")
        expected = bits([reference.step(frame) for frame in fed])
        found: list[tuple[float, ...]] = []
        async with client.session(model) as session:
            while len(found) < len(fed):
                chunk = fed[len(found) : len(found) + 1 + (number + len(found)) % 5]
                step = await session.feed(features=chunk, every_position=True)
                found += [output.values for output in step.outputs]
        assert bits(found) == expected

    async with AsyncClient(service.target) as client:
        await asyncio.gather(*(run(client, number) for number in range(24)))


def test_a_model_of_one_row_says_so_and_steps_frames_of_many_sessions(service: LocalService, repository: Path) -> None:
    references = [ReferenceSession(repository / "denoiser" / "1") for _ in range(7)]
    with Client(service.target) as client, client.batch("denoiser") as batch:
        assert (client.model("denoiser").max_batch_rows, client.model("vad").max_batch_rows) == (1, 0)
        batch.open_many([None] * 7)
        for turn in range(4):
            features = frames(7, 12, turn)
            step = batch.step(features=features)
            expected = [reference.step(row) for reference, row in zip(references, features, strict=True)]
            assert bits(step.values) == bits(expected)


def test_a_foreign_language_model_generates_and_searches(service: LocalService, repository: Path) -> None:
    reference = ReferenceSession(repository / "lm" / "1")
    with Client(service.target) as client, client.session("lm", first=True) as session:
        assert session.first is not None
        expected = [("<s>", "</s>", "a", "b", "c", "d")[token] for token in reference.generate(12)]
        assert [token.text for token in session.generate(max_tokens=12)] == expected
        best = client.generate("lm", max_tokens=6, beam_size=3, num_best=2)
        assert [token.text for token in best] == [token.text for token in best.hypotheses[0].tokens]
        assert client.score("lm", [["a", "b"]])[0].log_probability < 0


@pytest.mark.parametrize(("model", "size"), [("vad", FRAME), ("denoiser", 12)])
def test_foreign_models_can_be_traced(service: LocalService, model: str, size: int) -> None:
    """The gates satisfy the equations of the cell, whether rows are batched or not."""
    with Client(service.target) as client, client.session(model) as session:
        step = session.feed(features=frames(6, size, 0), every_position=True, trace=True)
        found = {name: np.array([output.trace[name] for output in step.outputs]) for name in step.trace}
    if model == "vad":
        cell = found["layer0.forget_gate"][1:] * found["layer0.cell"][:-1]
        cell += found["layer0.input_gate"][1:] * found["layer0.candidate"][1:]
        np.testing.assert_allclose(found["layer0.cell"][1:], cell, atol=1e-5)
    else:
        update, candidate = found["layer0.update_gate"][1:], found["layer0.candidate"][1:]
        hidden = (1 - update) * candidate + update * found["layer0.hidden"][:-1]
        np.testing.assert_allclose(found["layer0.hidden"][1:], hidden, atol=1e-5)


def test_a_model_without_gates_refuses_a_trace_with_the_reason(service: LocalService) -> None:
    with Client(service.target) as client, client.session("norm") as session:
        with pytest.raises(InvalidArgumentError, match="norm has no trace"):
            session.feed(features=frames(1, 4, 0), trace=True)
        assert session.position == 0

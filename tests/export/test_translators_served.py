"""A translator of two files is served with the results of a plain loop over the files, for every kind of request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from carousel import AsyncClient, Client, FinishReason, Step
from examples.local_service import LocalService
from export.__main__ import main
from tests.export import translators
from tests.services import local_service

Array = NDArray[np.generic]
Feed = Mapping[str, Array]
BOS, EOS, SOURCE_EOS = 1, 2, 3


@dataclass
class Loop:
    """Runs one row over the two files, as their author does.

    first: returns the decoder's first inputs, from the encoder's outputs and the source's length.
    following: a step's outputs, by the inputs of the next step.
    """

    encoder: ort.InferenceSession
    decoder: ort.InferenceSession
    token: str
    logits: str
    first: Callable[[Feed, int], dict[str, Array]]
    following: Mapping[str, str]
    has_lengths: bool = False
    is_flat: bool = True

    def begin(self, source: list[int]) -> dict[str, Array]:
        """Returns the decoder's first inputs."""
        feeds: dict[str, Array] = {self.encoder.get_inputs()[0].name: np.array([source])}
        if self.has_lengths:
            feeds["lengths"] = np.array([len(source)])
        names = [output.name for output in self.encoder.get_outputs()]
        return self.first(dict(zip(names, self.encoder.run(names, feeds), strict=True)), len(source))

    def step(self, carried: dict[str, Array], token: int) -> tuple[NDArray[np.float32], dict[str, Array]]:
        """Returns the logits after a token, [V], and the inputs of the next step."""
        names = [self.logits, *self.following.values()]
        given = np.array([token] if self.is_flat else [[token]])
        logits, *states = self.decoder.run(names, carried | {self.token: given})
        return logits.reshape(-1), carried | dict(zip(self.following, states, strict=True))

    def logits_over(self, source: list[int], tokens: list[int]) -> list[bytes]:
        """Returns the bits of the logits after each token."""
        carried, found = self.begin(source), []
        for token in tokens:
            logits, carried = self.step(carried, token)
            found.append(logits.tobytes())
        return found

    def greedy(self, source: list[int], limit: int) -> list[int]:
        """Returns the most likely tokens, without the end token."""
        carried, found, token = self.begin(source), [], BOS
        for _ in range(limit):
            logits, carried = self.step(carried, token)
            token = int(logits.argmax())
            if token == EOS:
                break
            found.append(token)
        return found


def attended(given: Feed, length: int) -> dict[str, Array]:
    return {"s": given["s0"], "annotations": given["annotations"], "mask": np.zeros((1, length), np.float32)}


def input_fed(given: Feed, length: int) -> dict[str, Array]:
    zeros = np.zeros((1, translators.UNITS), np.float32)
    return {"h": given["h_n"], "c": given["c_n"], "attn_vec": zeros, "memory": given["memory"]}


def plain(given: Feed, length: int) -> dict[str, Array]:
    return {"hidden": given["h_n"], "cell": given["c_n"]}


def vector(given: Feed, length: int) -> dict[str, Array]:
    return {"hidden": given["h_n"], "context": given["h_n"]}


MADE: dict[str, tuple[translators.Side, translators.Side, Callable[[Feed, int], dict[str, Array]], dict[str, str]]] = {
    "attends": (
        translators.bridged(),
        translators.bahdanau("additive", torch.float32),
        attended,
        {"s": "s_next"},
    ),
    "input-fed": (
        translators.encoder(layers=2, lengths=True),
        translators.luong(),
        input_fed,
        {"h": "h_out", "c": "c_out", "attn_vec": "attn_vec_out"},
    ),
    "plain": (
        translators.encoder(),
        translators.plain(),
        plain,
        {"hidden": "hidden_out", "cell": "cell_out"},
    ),
    "vector": (translators.encoder("GRU"), translators.fed(), vector, {"hidden": "hidden_new"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Loop]]:
    folder, to = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("repository")
    loops = {}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    names = folder / "source.txt"
    names.write_text("".join(f"{chr(ord('a') + at)}\n" for at in range(translators.SOURCE_SIZE)))
    for name, (encoder, decoder, first, following) in MADE.items():
        one = translators.export(encoder, folder / f"{name}.encoder.onnx")
        other = translators.export(decoder, folder / f"{name}.decoder.onnx")
        flags = ["--bos", str(BOS), "--eos", str(EOS), "--source-eos", str(SOURCE_EOS), "--max-source-length", "20"]
        flags += ["--source-vocabulary", str(names), "--source-tokenizer", "characters"]
        assert main(["onnx", str(other), "--encoder", str(one), "--name", name, "--to", str(to), *flags]) == 0
        loops[name] = Loop(
            ort.InferenceSession(str(one), options),
            ort.InferenceSession(str(other), options),
            decoder.inputs[0],
            decoder.outputs[0],
            first,
            following,
            has_lengths="lengths" in encoder.inputs,
            is_flat=decoder.example[0].dim() == 1,
        )
    return to, loops


@pytest.fixture(scope="module")
def service(made: tuple[Path, dict[str, Loop]]) -> Iterator[LocalService]:
    with local_service(made[0]) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def source_of(number: int) -> list[int]:
    random = np.random.default_rng(number)
    return [int(token) for token in random.integers(1, translators.SOURCE_SIZE, 1 + number % 13)]


def bits(step: Step) -> bytes:
    return np.array(step.outputs[0].logits, np.float32).tobytes()


@pytest.mark.parametrize("model", MADE)
async def test_sessions_with_sources_of_any_lengths_each_have_the_bits_of_a_bare_loop(
    service: LocalService, made: tuple[Path, dict[str, Loop]], model: str
) -> None:
    """Runs 24 sessions at once, with chunks of different sizes. Each source gets the end token once."""
    loop = made[1][model]

    async def run(client: AsyncClient, number: int) -> None:
        source = source_of(number)
        random = np.random.default_rng(100 + number)
        tokens = [int(token) for token in random.integers(0, translators.TARGET_SIZE, 12)]
        expected = loop.logits_over([*source, SOURCE_EOS], [BOS, *tokens])[1:]
        found: list[bytes] = []
        async with client.session(model, source=source) as session:
            while len(found) < len(tokens):
                chunk = tokens[len(found) : len(found) + 1 + (number + len(found)) % 4]
                step = await session.feed(chunk, every_position=True, logits=True)
                found += [np.array(output.logits, np.float32).tobytes() for output in step.outputs]
        assert found == expected

    async with AsyncClient(service.target) as client:
        await asyncio.gather(*(run(client, number) for number in range(24)))


@pytest.mark.parametrize("model", MADE)
def test_generations_are_those_of_a_plain_loop(
    service: LocalService, made: tuple[Path, dict[str, Loop]], model: str
) -> None:
    """Generates greedily from ids, names and text. The scores of a beam search agree with those of `score`."""
    loop = made[1][model]
    with Client(service.target) as client:
        for number in range(6):
            source = source_of(number)
            expected = loop.greedy([*source, SOURCE_EOS], 9)
            names = [chr(ord("a") + token) for token in source]
            for form in (source, names, "".join(names)):
                assert [token.id for token in client.generate(model, form, max_tokens=9)] == expected
            with client.session(model, source=source) as session:
                beams = session.generate(max_tokens=6, beam_size=3, num_best=3)
                list(beams)
            assert len(beams.hypotheses) == 3
            with client.session(model, source=source) as session:
                for one in filter(lambda hypothesis: hypothesis.tokens, beams.hypotheses):
                    has_ended = one.finish_reason is FinishReason.EOS
                    scored = session.score([[token.id for token in one.tokens]], with_end=has_ended)[0]
                    assert scored.log_probability == pytest.approx(one.log_probability, abs=1e-4)


@pytest.mark.parametrize("model", MADE)
def test_forks_snapshots_and_calls_keep_their_source(
    service: LocalService, made: tuple[Path, dict[str, Loop]], model: str
) -> None:
    loop = made[1][model]
    source, tokens = source_of(8), [3, 4, 5, 6]
    expected = loop.logits_over([*source, SOURCE_EOS], [BOS, *tokens])[1:]

    with Client(service.target) as client:
        with client.session(model, source=source, session_id=f"{model}-one") as session:
            session.feed(tokens[:2])
            client.sessions.fork(session.id, f"{model}-fork")
            snapshot = client.sessions.snapshot(session.id)
            client.sessions.restore(snapshot, session_id=f"{model}-copy")
            for name in ("fork", "copy"):
                with client.resume(f"{model}-{name}") as other:
                    assert [bits(other.feed([token], logits=True)) for token in tokens[2:]] == expected[2:]
            assert [bits(session.feed([token], logits=True)) for token in tokens[2:]] == expected[2:]
        for _ in range(2):  # the second call is a retry, and its source is not read again
            client.step(f"{model}-called", tokens[:1], model=model, source=source, position=0)
        called = client.step(f"{model}-called", tokens[1:2], position=1, logits=True, close=True)
        assert bits(called) == expected[1]


@pytest.mark.parametrize("model", MADE)
async def test_concurrent_traces_are_each_of_their_own_source(service: LocalService, model: str) -> None:
    async def look(client: AsyncClient, number: int) -> dict[str, bytes]:
        async with client.session(model, source=source_of(number)) as session:
            step = await session.feed([1 + number % 7], trace=True)
            return {name: np.array(values).tobytes() for name, values in step.outputs[0].trace.items()}

    async with AsyncClient(service.target) as client:
        alone = [await look(client, number) for number in range(12)]
        assert all(alone)
        assert await asyncio.gather(*(look(client, number) for number in range(12))) == alone

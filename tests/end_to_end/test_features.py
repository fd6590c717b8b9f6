"""Models that read numbers, return numbers or tag their input, on a real service: they keep the guarantees of models
that read and return tokens."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from carousel import AsyncClient, Client, InvalidArgumentError
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.conftest import SHIPPED, only
from tests.end_to_end.test_client_resume import killed_and_started_again
from tests.end_to_end.wire import Wire, wire
from tests.reference import ReferenceSession

CO2, STRESS, PYCHAR = (SHIPPED / name / "1" for name in ("co2-forecast", "stress-en", "pychar-en"))

Vectors = NDArray[np.float32]


def months(count: int, seed: int = 0) -> Vectors:
    """Returns a series like those that the model was trained on, [count, 1]."""
    generator = np.random.default_rng(seed)
    time = np.arange(count)
    noise = generator.standard_normal(count) * 0.2
    series: Vectors = (340 + seed + 0.12 * time + 3 * np.sin(2 * np.pi * time / 12) + noise).astype(np.float32)
    return series[:, np.newaxis]


def tensor(vectors: Vectors) -> pb.Tensor:
    return pb.Tensor(shape=vectors.shape, data=vectors.astype("<f4").tobytes())


def bits(values: object) -> bytes:
    return np.array(values, np.float32).tobytes()


def stress_ids(phonemes: str) -> list[int]:
    names = (STRESS / "input.txt").read_text().splitlines()
    return [names.index(phoneme) for phoneme in phonemes.split()]


def test_a_forecast_has_the_bits_of_a_loop_over_the_graph(shipped_service: LocalService) -> None:
    """Holds for one call, for a session, and for a client that feeds each value back."""
    history = months(36)
    reference = ReferenceSession(CO2, list(history))
    expected = bits(reference.forecast(12))
    with Client(shipped_service.target) as client:
        assert bits(client.forecast("co2-forecast", 12, history)) == expected
        assert bits(client.forecast("co2-forecast", 12, history.tolist())) == expected, "nested lists do as well"
        for flat in (history[:, 0], history[:, 0].tolist(), history[:, 0].astype(float)):
            assert bits(client.forecast("co2-forecast", 12, flat)) == expected, "and numbers one after the other"
        with client.session("co2-forecast", history, first=True) as session:
            assert session.first is not None
            assert bits(session.first.values) == expected[:4]
            assert bits(session.forecast(7) + session.forecast(5)) == expected
            assert session.position == 12
        with client.session("co2-forecast", history, first=True) as session:
            assert session.first is not None
            values = [session.first.values]
            for _ in range(11):
                values.append(session.feed(features=[values[-1]]).values)
            assert bits(values) == expected


def test_feeding_observed_values_corrects_a_forecast(shipped_service: LocalService) -> None:
    """Feeds and forecasts take turns. Each step of a feed has an output."""
    history, observed = months(36), months(60)[36:]
    reference = ReferenceSession(CO2, list(history))
    with Client(shipped_service.target) as client, client.session("co2-forecast", history) as session:
        for begin in range(0, 24, 6):
            chunk = observed[begin : begin + 6]
            step = session.feed(features=chunk, every_position=True)
            assert bits([output.values for output in step.outputs]) == bits([reference.step(row) for row in chunk])
        assert bits(session.forecast(3)) == bits(reference.forecast(3))


async def test_vectors_have_the_same_bits_in_batches_and_in_chunks(shipped_service: LocalService) -> None:
    """Runs 32 sessions at once. Their histories have different lengths, and their chunks different sizes."""

    async def run(client: AsyncClient, number: int) -> tuple[bytes, bytes]:
        history, fed = months(13 + number, number), months(40, number + 100)
        reference = ReferenceSession(CO2, list(history))
        expected = bits([reference.step(row) for row in fed])
        found: list[tuple[float, ...]] = []
        async with client.session("co2-forecast", history) as session:
            sizes = [1 + (number + turn) % 7 for turn in range(40)]
            while len(found) < len(fed):
                chunk = fed[len(found) : len(found) + sizes.pop()]
                step = await session.feed(features=chunk, every_position=True)
                found += [output.values for output in step.outputs]
        return bits(found), expected

    async with AsyncClient(shipped_service.target) as client:
        for found, expected in await asyncio.gather(*(run(client, number) for number in range(32))):
            assert found == expected


async def test_both_clients_forecast_the_same(shipped_service: LocalService) -> None:
    history = months(30)
    expected = bits(ReferenceSession(CO2, list(history)).forecast(5))
    async with AsyncClient(shipped_service.target) as client:
        assert bits(await client.forecast("co2-forecast", 5, history)) == expected
        async with client.session("co2-forecast", history) as session:
            assert bits(await session.forecast(5)) == expected
        async with client.batch("co2-forecast") as batch:
            await batch.open_many([history, history])
            step = await batch.step(features=months(2))
            assert len(step.values) == 2


async def test_a_feed_of_vectors_sent_again_is_applied_once(shipped_service: LocalService) -> None:
    history, fed = months(24), months(30)[24:]
    async with wire(shipped_service.target) as stream:
        await stream.ask("s", open=pb.Open(model="co2-forecast", source=pb.Sequence(features=tensor(history))))
        feed = pb.Feed(features=tensor(fed), position=0)
        first = await stream.ask("s", feed=feed)
        again = await stream.ask("s", feed=feed)
        assert (first.fed.replayed, again.fed.replayed) == (False, True)
        assert (first.position, again.position) == (6, 6)
        assert first.fed.outputs == again.fed.outputs
        other = pb.Feed(features=tensor(fed + 1), position=0)
        assert (await stream.ask("s", feed=other)).error.reason == "POSITION_MISMATCH"


async def test_a_frame_of_vectors_steps_many_sessions(shipped_service: LocalService) -> None:
    histories = [months(20 + number, number) for number in range(9)]
    references = [ReferenceSession(CO2, list(history)) for history in histories]
    with Client(shipped_service.target) as client, client.batch("co2-forecast") as batch:
        batch.open_many(histories)
        for turn in range(5):
            features = months(9, turn)
            step = batch.step(features=features)
            assert not step.errors
            assert bits(step.values) == bits(
                [reference.step(row) for reference, row in zip(references, features, strict=True)]
            )
        assert batch.positions == (5,) * 9


def test_a_restored_forecast_continues_bit_for_bit(shipped_service: LocalService) -> None:
    """The snapshot contains the level, and the pending input, which is the last forecast value."""
    history = months(36)
    expected = bits(ReferenceSession(CO2, list(history)).forecast(20))
    with Client(shipped_service.target) as client, client.session("co2-forecast", history) as session:
        begun = session.forecast(8)
        snapshot = client.sessions.snapshot(session.id)
        client.sessions.restore(snapshot, session_id="a-forecast")
        with client.resume("a-forecast") as copy:
            assert copy.position == 8
            assert bits(begun + copy.forecast(12)) == expected
        assert bits(begun + session.forecast(12)) == expected
        names = [tensor.name for tensor in client.sessions.get_state(session.id)]
        assert names == ["hidden", "cell", "level"]


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_program_that_feeds_vectors_continues_when_its_server_is_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    history, fed = months(36), months(500, 5)
    reference = ReferenceSession(CO2, list(history))
    models = only(tmp_path / "models", "co2-forecast")
    with (
        killed_and_started_again(models, tmp_path / "data", number) as server,
        Client(server.target) as client,
        client.session("co2-forecast", history) as session,
    ):
        for index, row in enumerate(fed):
            if index in {100, 300}:
                server.restart()
            assert bits(session.feed(features=[row]).values) == bits(reference.step(row))
        assert bits(session.forecast(6)) == bits(reference.forecast(6))


REFUSALS = {
    "no shape": (pb.Tensor(data=b"1234"), "feed.features.shape = [] must be [steps, 1]", "feed.features.shape"),
    "another width": (
        pb.Tensor(shape=[1, 2], data=bytes(8)),
        "feed.features.shape = [1, 2] must be [steps, 1]",
        "feed.features.shape",
    ),
    "no step": (pb.Tensor(shape=[0, 1]), "feed.features is empty: it must have 1 vector or more", "feed.features"),
    "too few bytes": (
        pb.Tensor(shape=[2, 1], data=bytes(7)),
        "feed.features.data has 7 bytes, and shape [2, 1] of 32-bit floats needs 8",
        "feed.features.data",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_tensor_of_another_form_is_refused_and_changes_nothing(
    shipped_service: LocalService, case: str
) -> None:
    features, message, field = REFUSALS[case]
    history = months(24)
    async with wire(shipped_service.target) as stream:
        await stream.ask("s", open=pb.Open(model="co2-forecast", source=pb.Sequence(features=tensor(history))))
        error = (await stream.ask("s", feed=pb.Feed(features=features))).error
        assert (error.code, error.message, error.field) == (
            grpc.StatusCode.INVALID_ARGUMENT.value[0],
            message,
            field,
        )
        fed = await stream.ask("s", feed=pb.Feed(features=tensor(months(1)), position=0))
        assert bits(fed.fed.outputs[0].values) == bits(ReferenceSession(CO2, list(history)).step(months(1)[0]))


async def _refused(stream: Wire, **request: object) -> tuple[str, str]:
    error = (await stream.ask("s", **request)).error
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    return error.message, error.field


async def test_a_model_of_values_refuses_tokens_and_their_options(shipped_service: LocalService) -> None:
    """A model of values refuses tokens, scores, and decoding options about tokens, also token ids in a step batch."""
    history = pb.Sequence(features=tensor(months(24)))
    async with wire(shipped_service.target) as stream:
        opening = pb.Open(model="co2-forecast", source=pb.Sequence(text="abc"))
        assert await _refused(stream, open=opening) == (
            "open.source does not fit co2-forecast: it reads features",
            "open.source",
        )
        await stream.ask("s", open=pb.Open(model="co2-forecast", source=history))
        assert await _refused(stream, feed=pb.Feed(tokens=["a"])) == (
            "feed.tokens does not fit co2-forecast: it reads features",
            "feed.tokens",
        )
        outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=1)
        assert await _refused(stream, feed=pb.Feed(features=tensor(months(1)), outputs=outputs)) == (
            "feed.outputs.kind = OUTPUT_KIND_TOP_K is not supported by co2-forecast, which outputs values",
            "feed.outputs.kind",
        )
        sampled = pb.Generate(decoding=pb.Decoding(sampling=pb.Sampling()))
        assert await _refused(stream, generate=sampled) == (
            "generate.decoding.sampling must not be set: co2-forecast outputs values, not logits over tokens",
            "generate.decoding.sampling",
        )
        stopped = pb.Generate(decoding=pb.Decoding(stop_token_ids=[1]))
        assert (await _refused(stream, generate=stopped))[1] == "generate.decoding.stop_token_ids"
        score = pb.Score(targets=[pb.Sequence(text="a")])
        assert (await _refused(stream, score=score))[1] == "score.targets"
        frame = pb.StepBatch(handles=[1], token_ids=[1])
        error = (await stream.ask(step_batch=frame)).error
        assert error.message == "step_batch.token_ids does not fit co2-forecast: it reads features"


async def test_a_model_of_tokens_refuses_vectors(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask("s", open=pb.Open(model="pychar-en"))
        assert await _refused(stream, feed=pb.Feed(features=tensor(months(1)))) == (
            "feed.features does not fit pychar-en: it reads tokens",
            "feed.features",
        )
        outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_VALUES)
        assert await _refused(stream, feed=pb.Feed(tokens=["a"], outputs=outputs)) == (
            "feed.outputs.kind = OUTPUT_KIND_VALUES is not supported by pychar-en, which outputs logits over a"
            " vocabulary",
            "feed.outputs.kind",
        )


def test_a_tagger_returns_a_tag_for_each_fed_token(shipped_service: LocalService) -> None:
    """Input and output have separate vocabularies. A chunk has the same tags as single steps."""
    heard = "L UW IY S | AE N AH L IH T IH K AH L | | | |"
    reference = ReferenceSession(STRESS)
    names = (STRESS / "target.txt").read_text().splitlines()
    expected = [names[int(reference.step(token).argmax())] for token in stress_ids(heard)]
    with Client(shipped_service.target) as client, client.session("stress-en") as session:
        half = heard.split()
        tags = [session.feed([phoneme]).token.text for phoneme in half[:7]]
        tags += [output.tokens[0].text for output in session.feed(half[7:], every_position=True).outputs]
        assert tags == expected
        assert set(tags) <= {"-", "0", "1", "2"}
        info = client.model("stress-en")
        assert (info.can_generate, len(info.input_vocabulary), info.target_vocabulary) == (
            False,
            41,
            ("-", "0", "1", "2"),
        )


def test_a_tagger_cannot_generate(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as client, client.session("stress-en") as session:
        session.feed(["K"])
        with pytest.raises(InvalidArgumentError, match="stress-en cannot generate: the output of a step is not"):
            list(session.generate(max_tokens=2))
        with pytest.raises(InvalidArgumentError, match="do not consume the tokens that it generates"):
            session.score([["1"]])
        with pytest.raises(InvalidArgumentError, match=r"feed.tokens\[0\] = '1' is not in the input vocabulary"):
            session.feed(["1"])
        assert session.position == 1


def test_an_editor_completes_a_line_and_takes_it_back(shipped_service: LocalService) -> None:
    """Feeds characters as a user types them, white space included. A rewind to a mark undoes a generation."""
    with Client(shipped_service.target) as client, client.session("pychar-en") as session:
        session.feed(list("class Reader:\n    def __init__(self"), mark=True)
        where = session.position
        completion = "".join(token.text for token in session.generate(max_tokens=40, stop=["\n"]))
        assert completion.endswith(":")
        session.rewind(where)
        again = "".join(token.text for token in session.generate(max_tokens=40, stop=["\n"]))
        assert again == completion
        session.rewind(where)
        session.feed(list(", path):\n        self."))
        assert session.position == where + 22


def test_a_character_that_a_vocabulary_lacks_is_its_unknown_token(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as client:
        answers = []
        for text in ("naïve", "naëve"):
            with client.session("pychar-en") as session:
                answers.append(session.feed(list(text), logits=True).logits)
        assert answers[0] == answers[1]
        with client.session("pychar-en") as session:
            assert session.feed(["n", "a", "<unk>", "v", "e"], logits=True).logits == answers[0]

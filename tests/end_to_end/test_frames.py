"""Step batches on a real service: each session has the same result as alone, and a failing row affects no other row."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.conftest import SHIPPED
from tests.end_to_end.wire import Wire, g2p, lm, wire
from tests.reference import ReferenceSession
from tests.services import local_service

LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
G2P = SHIPPED / "g2p-en" / "1"
WORDS = ["a", "carousel", "it's", "gradient", "memory", "lstm"]


async def opened(stream: Wire, count: int, model: str = "tiny-lm") -> list[int]:
    """Opens sessions. Returns their handles."""
    return [(await stream.ask(f"s{index}", open=lm(model))).opened.handle for index in range(count)]


async def frame(stream: Wire, **fields: object) -> pb.BatchStepped:
    response = await stream.ask(step_batch=pb.StepBatch(**fields))  # type: ignore[arg-type]
    assert response.HasField("batch_stepped"), response
    assert (response.session_id, response.position) == ("", 0)
    return response.batch_stepped


async def test_handles_are_small_numbers_that_are_never_used_again(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        assert await opened(stream, 3) == [1, 2, 3]
        await stream.ask("s1", close=pb.Close())
        assert (await stream.ask("s9", open=lm())).opened.handle == 4
        stepped = await frame(stream, handles=[2, 4], token_ids=[1, 1])
        assert list(stepped.positions) == [0, 1]
        (refused,) = stepped.errors
        assert refused.index == 0
        assert refused.error.reason == "SESSION_NOT_OPEN"
        assert refused.error.message == "step_batch.handles[0] = 2 is not a session that is open on this stream"


@pytest.mark.parametrize("model", ["tiny-lm", "tiny-bos", "tiny-heads"])
async def test_every_logit_of_a_step_batch_has_the_bits_of_a_session_alone(
    tiny_service: LocalService, tiny_repository: object, model: str
) -> None:
    folder = tiny_repository / model / "1"  # type: ignore[operator]
    generator = random.Random(1)
    async with wire(tiny_service.target) as stream:
        handles = await opened(stream, 20, model)
        alone = [ReferenceSession(folder) for _ in handles]
        positions = [0] * 20
        for _ in range(12):
            places = generator.sample(range(20), generator.randrange(1, 21))
            counts = [generator.choice([1, 1, 1, 2, 5]) for _ in places] if generator.random() < 0.5 else None
            tokens = [generator.randrange(17) for _ in range(len(places) if counts is None else sum(counts))]
            stepped = await frame(
                stream,
                handles=[handles[place] for place in places],
                token_ids=tokens,
                counts=counts,
                positions=[positions[place] for place in places],
                outputs=LOGITS,
            )
            expected = []
            for place, count in zip(places, counts or [1] * len(places), strict=True):
                for _ in range(count):
                    logits = alone[place].step(tokens.pop(0))
                positions[place] += count
                expected.append(logits)
            assert not stepped.errors
            assert list(stepped.positions) == [positions[place] for place in places]
            assert np.array(stepped.logits, np.float32).tobytes() == np.array(expected, np.float32).tobytes()


async def test_a_frame_of_a_model_with_a_source_reads_each_sessions_own(shipped_service: LocalService) -> None:
    letters = (G2P / "source.txt").read_text().splitlines()
    async with wire(shipped_service.target) as stream:
        handles = [(await stream.ask(f"w{at}", open=g2p(word))).opened.handle for at, word in enumerate(WORDS)]
        tokens = [5 + index for index in range(len(WORDS))]
        rounds = [await frame(stream, handles=handles, token_ids=tokens, outputs=LOGITS) for _ in range(3)]
    alone = [ReferenceSession(G2P, [letters.index(letter) for letter in word]) for word in WORDS]
    for stepped in rounds:
        expected = np.array([session.step(token) for session, token in zip(alone, tokens, strict=True)], np.float32)
        assert np.array(stepped.logits, np.float32).tobytes() == expected.tobytes()


async def test_a_step_batch_returns_the_same_top_tokens_as_a_feed(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        for model in ("tiny-lm", "tiny-heads"):
            one = (await stream.ask(f"{model}-1", open=lm(model))).opened.handle
            await stream.ask(f"{model}-2", open=lm(model))
            for k, output in ((0, pb.OutputSpec()), (3, pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=3))):
                stepped = await frame(stream, handles=[one], token_ids=[7], outputs=output)
                fed = (await stream.ask(f"{model}-2", feed=pb.Feed(token_ids=[7], outputs=output))).fed
                tokens = fed.outputs[0].tokens
                assert list(stepped.token_ids) == [token.id for token in tokens]
                assert list(stepped.log_probabilities) == [token.log_probability for token in tokens if k]
            stepped = await frame(stream, handles=[one], token_ids=[7], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE))
            assert (list(stepped.positions), list(stepped.token_ids)) == ([3], [])


async def test_a_refused_row_reports_its_position_and_affects_no_other_row(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        handles = await opened(stream, 4, "tiny-endless")
        await frame(stream, handles=handles, token_ids=[5, 5, 5, 5])
        await stream.send("s1", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
        while not (await stream.read()).generated.tokens:
            pass
        await stream.send(
            step_batch=pb.StepBatch(handles=handles, token_ids=[6, 6, 99, 6], positions=[0, 1, 1, 1], outputs=LOGITS)
        )
        while not (response := await stream.read()).HasField("batch_stepped"):
            pass
        stepped = response.batch_stepped
        found = [(one.index, one.error.reason, one.error.message) for one in stepped.errors]
        assert [(index, reason) for index, reason, _ in found] == [
            (0, "POSITION_MISMATCH"),
            (1, "ILLEGAL_REQUEST"),
            (2, "TOKEN_OUT_OF_VOCABULARY"),
        ]
        assert found[0][2] == "step_batch.positions = 0, but the session is at position 1"
        assert found[2][2].startswith("step_batch.token_ids[2] = 99 is outside")
        assert [stepped.positions[place] for place in (0, 2, 3)] == [1, 1, 2]
        logits = np.array(stepped.logits, np.float32).reshape(4, -1)
        assert not logits[:3].any()
        assert logits[3].any()


async def test_a_frame_sent_again_is_answered_again_and_applied_once(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        handles = await opened(stream, 5)
        message = pb.StepBatch(handles=handles, token_ids=[3] * 5, positions=[0] * 5, outputs=LOGITS)
        sent = [await stream.send(step_batch=message) for _ in range(3)]
        answers = [await stream.read() for _ in sent]
        assert [answer.request_id for answer in answers] == sent
        assert [answer.batch_stepped.replayed for answer in answers] == [False, True, True]
        for answer in answers:
            answer.batch_stepped.replayed = False
        assert answers[0].batch_stepped == answers[1].batch_stepped == answers[2].batch_stepped
        assert list(answers[0].batch_stepped.positions) == [1] * 5
        assert list((await frame(stream, handles=handles, token_ids=[3] * 5)).positions) == [2] * 5


async def test_pipelined_frames_and_feeds_are_applied_in_order(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        handles = await opened(stream, 8)
        for position in range(0, 30, 3):
            for offset in range(2):
                await stream.send(
                    step_batch=pb.StepBatch(
                        handles=handles, token_ids=[offset + 1] * 8, positions=[position + offset] * 8
                    )
                )
            for index in range(8):
                await stream.send(f"s{index}", feed=pb.Feed(token_ids=[9], position=position + 2))
        answers = [await stream.read() for _ in range(100)]
    assert not [answer for answer in answers if answer.HasField("error") or answer.batch_stepped.errors]
    frames = [list(answer.batch_stepped.positions) for answer in answers if answer.HasField("batch_stepped")]
    assert frames == [[position] * 8 for position in range(31) if position % 3]


BAD_FRAMES = {
    "no handles": ({}, "step_batch.handles is empty: it must have 1 handle or more"),
    "twice": ({"handles": [1, 2, 1], "token_ids": [1, 1, 1]}, "step_batch.handles[2] = 1 is a duplicate"),
    "too few tokens": (
        {"handles": [1, 2], "token_ids": [1]},
        "step_batch.token_ids has 1 entries, but step_batch.handles has 2",
    ),
    "counts of another length": (
        {"handles": [1, 2], "token_ids": [1, 1], "counts": [2]},
        "step_batch.counts has 1 entries, but step_batch.handles has 2",
    ),
    "counts that do not add up": (
        {"handles": [1, 2], "token_ids": [1, 1], "counts": [1, 2]},
        "step_batch.token_ids has 2 entries, but step_batch.counts add up to 3",
    ),
    "a count of 0": (
        {"handles": [1, 2], "token_ids": [1, 1], "counts": [2, 0]},
        "step_batch.counts[1] = 0 must be 1 or more",
    ),
    "positions of another length": (
        {"handles": [1, 2], "token_ids": [1, 1], "positions": [0]},
        "step_batch.positions has 1 entries, but step_batch.handles has 2",
    ),
    "every position": (
        {"handles": [1], "token_ids": [1], "outputs": pb.OutputSpec(every_position=True)},
        "step_batch.outputs.every_position must not be set: a step batch returns one output for each session",
    ),
    "too many of the best": (
        {"handles": [1], "token_ids": [1], "outputs": pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=18)},
        "step_batch.outputs.top_k = 18 must be 1 to 17, the vocabulary's size",
    ),
    "of two models": (
        {"handles": [1, 3], "token_ids": [1, 1]},
        "step_batch.handles has sessions of more than one model, version or variant: send a step batch for each",
    ),
}


@pytest.mark.parametrize(("fields", "message"), BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_an_invalid_step_batch_is_refused_and_steps_no_session(
    tiny_service: LocalService, fields: dict[str, object], message: str
) -> None:
    async with wire(tiny_service.target) as stream:
        await opened(stream, 2)
        await stream.ask("other", open=lm("tiny-bos"))
        refused = (await stream.ask(step_batch=pb.StepBatch(**fields))).error  # type: ignore[arg-type]
        assert refused.message == message
        named = await stream.ask("s0", step_batch=pb.StepBatch(handles=[1], token_ids=[1]))
        assert named.error.message == "session_id must be empty: step_batch names its sessions"
        stepped = await frame(stream, handles=[1, 2], token_ids=[1, 1], positions=[0, 0])
        assert list(stepped.positions) == [1, 1]


async def test_a_session_closed_during_a_step_batch_is_reported_and_the_others_are_stepped(
    tiny_repository: object,
) -> None:
    with local_service(tiny_repository, {"max-batch-rows": 2}) as service:  # type: ignore[arg-type]
        async with wire(service.target) as stream:
            handles = await opened(stream, 6)
            await stream.send(step_batch=pb.StepBatch(handles=handles, token_ids=[1] * 1200, counts=[200] * 6))
            await stream.send("s3", cancel=pb.Cancel())
            answers = [await stream.read(), await stream.read()]
    stepped = next(answer.batch_stepped for answer in answers if answer.HasField("batch_stepped"))
    assert [positions for place, positions in enumerate(stepped.positions) if place != 3] == [200] * 5
    assert [one.index for one in stepped.errors] in ([], [3]), "it may have been done already"
    if stepped.errors:
        assert stepped.errors[0].error.reason == "CANCELLED"
        assert stepped.positions[3] < 200


async def test_the_more_sessions_fail_the_shorter_are_the_reasons_and_the_answer_keeps_its_limit(
    tiny_repository: Path,
) -> None:
    with local_service(tiny_repository, {"max-message-bytes": 16_384}) as service:
        async with wire(service.target) as stream:
            handles = await opened(stream, 170)
            await frame(stream, handles=handles, token_ids=[1] * 170)
            few = await frame(stream, handles=handles[:5], token_ids=[1] * 5, positions=[9] * 5)
            assert few.errors[0].error.message == "step_batch.positions = 9, but the session is at position 1"
            assert few.errors[0].error.metadata["position"] == "1"
            response = await stream.ask(
                step_batch=pb.StepBatch(handles=handles, token_ids=[1] * 170, positions=[9] * 170)
            )
            assert response.ByteSize() <= 16_384
            assert [error.index for error in response.batch_stepped.errors] == list(range(170))
            assert {error.error.reason for error in response.batch_stepped.errors} == {"POSITION_MISMATCH"}
            assert not any(error.error.metadata for error in response.batch_stepped.errors)
            assert list(response.batch_stepped.positions) == [1] * 170
            too_many = await stream.ask(step_batch=pb.StepBatch(handles=range(1, 201), token_ids=[1] * 200))
            assert too_many.error.reason == "ANSWER_TOO_LARGE"

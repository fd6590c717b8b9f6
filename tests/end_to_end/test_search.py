"""Beam search, scores and variants on a real service, compared with plain loops over the reference."""

from __future__ import annotations

import copy
from math import fsum
from pathlib import Path

import grpc
import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from service.engine.beam import BeamSearch, Hypothesis
from service.engine.decoding import score
from tests.conftest import SHIPPED
from tests.end_to_end.wire import g2p, lm, wire
from tests.reference import ReferenceSession
from tests.services import local_service

G2P = SHIPPED / "g2p-en" / "1"
EOS_ID = 2
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)


def reference(word: str) -> ReferenceSession:
    letters = (G2P / "source.txt").read_text().splitlines()
    return ReferenceSession(G2P, [letters.index(letter) for letter in word])


def search_plainly(session: ReferenceSession, search: BeamSearch) -> list[Hypothesis]:
    """Runs a search with one session for each beam. Each child is a copy of its parent's session."""
    rows = [session]
    while not search.is_done:
        step = search.advance(np.array([row.logits for row in rows]))
        rows = [copy.copy(rows[parent]) for parent in step.parents.tolist()]
        for row, token in zip(rows, step.tokens.tolist(), strict=True):
            row.step(token)
    return search.results()


def comparable(hypothesis: pb.Hypothesis | Hypothesis) -> tuple[object, ...]:
    if isinstance(hypothesis, pb.Hypothesis):
        tokens = [(token.id, token.log_probability) for token in hypothesis.tokens]
        reason = {1: "eos", 2: "max_tokens", 3: "stop"}[hypothesis.finish_reason]
    else:
        tokens = list(zip(hypothesis.tokens, hypothesis.log_probabilities, strict=False))
        reason = hypothesis.finish_reason.value
    return tokens, hypothesis.score, hypothesis.log_probability, reason


@pytest.mark.parametrize(
    ("beam_size", "length_penalty", "num_best"), [(1, 1.0, 1), (4, 1.0, 4), (8, 0.0, 3), (64, 2.0, 64)]
)
async def test_a_beam_search_finds_what_a_plain_one_finds(
    shipped_service: LocalService, beam_size: int, length_penalty: float, num_best: int
) -> None:
    options = pb.BeamSearch(beam_size=beam_size, length_penalty=length_penalty, num_best=num_best)
    words = ["carousel", "gradient", "a", "onomatopoeia"]
    async with wire(shipped_service.target) as stream:
        for word in words:
            await stream.ask(word, open=g2p(word))
        for word in words:  # sent at once, so that their beams are rows of the same batches
            await stream.send(word, generate=pb.Generate(decoding=pb.Decoding(max_tokens=20, beam_search=options)))
        answers = {response.session_id: response for response in [await stream.read() for _ in words]}
        again = await stream.ask("a", feed=pb.Feed(token_ids=[7], outputs=LOGITS))
    for word in words:
        search = BeamSearch(beam_size, 20, EOS_ID, length_penalty=length_penalty, num_best=num_best)
        expected = search_plainly(reference(word), search)
        generated = answers[word].generated
        assert [comparable(one) for one in generated.hypotheses] == [comparable(one) for one in expected]
        assert [token.id for token in generated.tokens] == expected[0].tokens
        assert generated.finish_reason == generated.hypotheses[0].finish_reason
        assert answers[word].position == len(expected[0].tokens)
    session = reference("a")
    for token in [*(token.id for token in answers["a"].generated.tokens), 7]:
        session.step(token)
    assert np.array(again.fed.outputs[0].logits, np.float32).tobytes() == np.float32(session.logits).tobytes()


async def test_a_beam_of_one_is_greedy_and_a_wider_one_never_scores_worse(shipped_service: LocalService) -> None:
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for word in ("carousel", "memory"):
            source = pb.Sequence(text=word)
            greedy = [r async for r in stub.Generate(pb.GenerateRequest(model="g2p-en", source=source))]
            found = []
            for size in (1, 5):
                decoding = pb.Decoding(beam_search=pb.BeamSearch(beam_size=size, length_penalty=0))
                request = pb.GenerateRequest(model="g2p-en", source=source, decoding=decoding)
                (response,) = [r async for r in stub.Generate(request)]
                found.append(response.generated)
            assert [t.id for t in found[0].tokens] == [t.id for part in greedy for t in part.generated.tokens]
            assert found[1].hypotheses[0].log_probability >= found[0].hypotheses[0].log_probability


async def test_cancelling_a_search_leaves_the_session_as_it_was(tiny_service: LocalService) -> None:
    options = pb.Decoding(max_tokens=60_000, beam_search=pb.BeamSearch(beam_size=16))
    async with wire(tiny_service.target) as stream:
        for name in ("searched", "other"):
            await stream.ask(name, open=lm("tiny-endless"))
            await stream.ask(name, feed=pb.Feed(token_ids=[4, 5]))
        await stream.send("searched", generate=pb.Generate(decoding=options))
        others = await stream.ask("other", feed=pb.Feed(token_ids=[9], position=2, outputs=LOGITS))
        assert others.HasField("fed"), "they go on meanwhile"
        await stream.send("searched", cancel=pb.Cancel())
        failed, cancelled = await stream.read(), await stream.read()
        assert (failed.error.reason, failed.position) == ("CANCELLED", 2)
        assert cancelled.cancelled.request_count == 1
        fed = await stream.ask("searched", feed=pb.Feed(token_ids=[9], position=2, outputs=LOGITS))
    assert fed.fed == others.fed


@pytest.mark.parametrize("model", ["tiny-bos", "tiny-heads"])
@pytest.mark.parametrize("with_end", [False, True])
async def test_a_score_is_what_teacher_forcing_gives_and_moves_nothing(
    tiny_service: LocalService, tiny_repository: Path, model: str, with_end: bool
) -> None:
    targets = [[5], [5, 6, 7], [9] * 70, [4, 3, 2]]
    async with wire(tiny_service.target) as stream:
        await stream.ask("s", open=lm(model))
        for position, fed in ((0, []), (2, [8, 8])):
            if fed:
                await stream.ask("s", feed=pb.Feed(token_ids=fed))
            sequences = [pb.Sequence(ids=pb.TokenIds(ids=target)) for target in targets]
            answer = await stream.ask("s", score=pb.Score(targets=sequences, with_end=with_end, position=position))
            assert answer.position == position
            for target, found in zip(targets, answer.scored.scores, strict=True):
                expected = forced(tiny_repository / model / "1", fed, [*target, *([3] if with_end else [])])
                assert list(found.log_probabilities) == expected
                assert found.log_probability == fsum(expected)


def forced(folder: Path, fed: list[int], target: list[int]) -> list[float]:
    session = ReferenceSession(folder)
    for token in fed:
        session.step(token)
    rows = [session.logits, *(session.step(token) for token in target[:-1])]
    values: list[float] = score(np.array(rows), np.array(target)).tolist()
    return values


async def test_a_score_in_one_call_is_that_of_a_session(shipped_service: LocalService) -> None:
    source, target = pb.Sequence(text="carousel"), pb.Sequence(tokens=pb.TokenNames(names=["K", "EH", "R", "AH"]))
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        stub, sessions = inference_pb2_grpc.InferenceStub(channel), sessions_pb2_grpc.SessionsStub(channel)
        others = {one.session_id for one in (await sessions.List(sessions_pb2.SessionsListRequest())).sessions}
        request = pb.ScoreRequest(model="g2p-en", source=source, targets=[target], with_end=True)
        (response,) = (await stub.Score(request)).scores
        assert len(response.log_probabilities) == 5
        async with wire(shipped_service.target) as stream:
            await stream.ask("s", open=g2p("carousel"))
            answer = await stream.ask("s", score=pb.Score(targets=[target], with_end=True))
        assert answer.scored.scores[0] == response
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Score(pb.ScoreRequest(model="g2p-en", source=source))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "targets is empty: it must have 1 target or more"
        listed = await sessions.List(sessions_pb2.SessionsListRequest())
        assert {one.session_id for one in listed.sessions} <= others, "a call leaves no session behind"


def beam(**fields: object) -> pb.Decoding:
    return pb.Decoding(max_tokens=5, beam_search=pb.BeamSearch(**fields))  # type: ignore[arg-type]


WITHIN = "generate.decoding.beam_search"
SEQUENCE = pb.Sequence(ids=pb.TokenIds(ids=[4]))
BAD = {
    "no beam": ({"generate": pb.Generate(decoding=beam())}, f"{WITHIN}.beam_size = 0 must be 1 to 64 (max_forks)"),
    "too wide": (
        {"generate": pb.Generate(decoding=beam(beam_size=65))},
        f"{WITHIN}.beam_size = 65 must be 1 to 64 (max_forks)",
    ),
    "too many": (
        {"generate": pb.Generate(decoding=beam(beam_size=3, num_best=4))},
        f"{WITHIN}.num_best = 4 must be 1 to beam_size, 3",
    ),
    "penalty": (
        {"generate": pb.Generate(decoding=beam(beam_size=3, length_penalty=float("nan")))},
        f"{WITHIN}.length_penalty = nan must be -10 to 10",
    ),
    "sampling": (
        {"generate": pb.Generate(decoding=pb.Decoding(beam_search=pb.BeamSearch(beam_size=2), sampling=pb.Sampling()))},
        f"{WITHIN} and generate.decoding.sampling are both set: set one",
    ),
    "repetition penalty": (
        {"generate": pb.Generate(decoding=pb.Decoding(beam_search=pb.BeamSearch(beam_size=2), repetition_penalty=2.0))},
        f"{WITHIN} and generate.decoding.repetition_penalty are both set: set one",
    ),
    "no target": ({"score": pb.Score()}, "score.targets is empty: it must have 1 target or more"),
    "too many targets": (
        {"score": pb.Score(targets=[SEQUENCE] * 65)},
        "score.targets has 65 targets, the limit is 64 (max_forks)",
    ),
    "empty target": (
        {"score": pb.Score(targets=[SEQUENCE, pb.Sequence(ids=pb.TokenIds())])},
        "score.targets[1].ids is empty: it must have 1 token or more",
    ),
    "unknown token": (
        {"score": pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[4, 17]))])},
        "score.targets[0].ids.ids[1] = 17 is outside the vocabulary of tiny-endless (0 to 16)",
    ),
    "no end token": (
        {"score": pb.Score(targets=[SEQUENCE], with_end=True)},
        "score.with_end must not be set: tiny-endless has no end token",
    ),
    "elsewhere": (
        {"score": pb.Score(targets=[SEQUENCE], position=9)},
        "score.position = 9, but the session is at position 1",
    ),
}


@pytest.mark.parametrize(("request_fields", "message"), BAD.values(), ids=BAD.keys())
async def test_an_invalid_search_or_score_is_refused_and_changes_nothing(
    tiny_service: LocalService, request_fields: dict[str, object], message: str
) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("s", open=lm("tiny-endless"))
        await stream.ask("s", feed=pb.Feed(token_ids=[4]))
        assert (await stream.ask("s", **request_fields)).error.message == message
        assert (await stream.ask("s", feed=pb.Feed(token_ids=[4], position=1))).HasField("fed")


async def test_more_beams_than_there_is_room_for_are_refused_with_a_retry_delay(tiny_repository: Path) -> None:
    decoding = pb.Decoding(max_tokens=50_000, beam_search=pb.BeamSearch(beam_size=6))
    with local_service(tiny_repository, {"max-forks": 6, "num-forks": 10}) as service:
        async with wire(service.target) as stream:
            for name in ("one", "two"):
                await stream.ask(name, open=lm("tiny-endless"))
            await stream.send("one", generate=pb.Generate(decoding=decoding))
            refused = (await stream.ask("two", generate=pb.Generate(decoding=decoding))).error
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "QUEUE_FULL")
            assert refused.HasField("retry_delay")
            await stream.send("one", close=pb.Close())
            await stream.read()
            await stream.read()
            short = pb.Decoding(max_tokens=5, beam_search=pb.BeamSearch(beam_size=6))
            for _ in range(5):  # a search frees its forks when it ends
                assert (await stream.ask("two", generate=pb.Generate(decoding=short))).generated.finish_reason


async def test_a_variant_is_chosen_at_open_and_computes_its_own(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    folder = tiny_repository / "tiny-heads" / "1"
    async with wire(tiny_service.target) as stream:
        found = {}
        for variant in ("", "fp32", "other"):
            opened = (await stream.ask(f"s{variant}", open=lm("tiny-heads", variant=variant))).opened
            assert opened.variant == (variant or "fp32")
            fed = (await stream.ask(f"s{variant}", feed=pb.Feed(token_ids=[6, 7], outputs=LOGITS))).fed
            found[variant] = np.array(fed.outputs[0].logits, np.float32).tobytes()
        refused = (await stream.ask("x", open=lm("tiny-heads", variant="int8"))).error
        assert refused.message == (
            "open.variant = 'int8' of model 'tiny-heads' version 1 does not exist (available: fp32, other)"
        )
        assert (refused.code, refused.field) == (grpc.StatusCode.NOT_FOUND.value[0], "open.variant")
        async with grpc.aio.insecure_channel(tiny_service.target) as channel:
            get = sessions_pb2.SessionsGetRequest(session_id="sother")
            assert (await sessions_pb2_grpc.SessionsStub(channel).Get(get)).session.variant == "other"
            model = models_pb2.ModelsGetRequest(model="tiny-heads")
            info = (await models_pb2_grpc.ModelsStub(channel).Get(model)).model
            assert list(info.variants) == ["fp32", "other"]
    assert found[""] == found["fp32"] == two_tokens(ReferenceSession(folder))
    assert found["other"] == two_tokens(ReferenceSession(folder, variant="other"))
    assert found["other"] != found[""]


def two_tokens(session: ReferenceSession) -> bytes:
    session.step(6)
    return session.step(7).tobytes()

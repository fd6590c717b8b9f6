"""The guarantees of a session on a real service: bit-identical results, exactly once, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.conftest import SHIPPED, only
from tests.end_to_end.wire import Wire, g2p, lm, wire
from tests.reference import ReferenceSession
from tests.services import local_service
from tests.waiting import until

G2P = SHIPPED / "g2p-en" / "1"
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
WORDS = ["a", "carousel", "it's", "antidisestablishmentarianism", "gradient", "memory", "lstm", "onomatopoeia"]


def source_ids(word: str) -> list[int]:
    letters = (G2P / "source.txt").read_text().splitlines()
    return [letters.index(letter) for letter in word]


def phoneme_ids(word: str, count: int) -> list[int]:
    """Returns some phonemes, always the same for a word."""
    generator = random.Random(word)
    return [generator.randrange(3, 42) for _ in range(count)]


async def stream_session(stream: Wire, session_id: str, word: str, chunks: list[int]) -> bytes:
    """Feeds a session in chunks of these sizes. Returns the bits of all logits."""
    await stream.ask(session_id, open=g2p(word))
    tokens = phoneme_ids(word, sum(chunks))
    logits: list[float] = []
    position = 0
    for size in chunks:
        feed = pb.Feed(token_ids=tokens[position : position + size], position=position, outputs=LOGITS)
        response = await stream.ask(session_id, feed=feed)
        logits += [value for output in response.fed.outputs for value in output.logits]
        position += size
        assert response.position == position
    return np.array(logits, np.float32).tobytes()


def reference_bits(word: str, count: int) -> bytes:
    session = ReferenceSession(G2P, source_ids(word))
    return np.array([session.step(token) for token in phoneme_ids(word, count)], np.float32).tobytes()


async def test_64_concurrent_sessions_each_give_the_bits_that_they_give_alone(shipped_service: LocalService) -> None:
    generator = random.Random(0)
    plans = []
    for index in range(64):
        word = WORDS[index % len(WORDS)]
        chunks = [generator.choice([1, 1, 1, 2, 3, 7, 16]) for _ in range(12)]
        plans.append((f"bits-{index}", word, chunks))

    async def one(session_id: str, word: str, chunks: list[int]) -> bytes:
        async with wire(shipped_service.target) as stream:
            return await stream_session(stream, session_id, word, chunks)

    together = await asyncio.gather(*(one(*plan) for plan in plans))
    for (session_id, word, chunks), bits in list(zip(plans, together, strict=True))[::7]:
        assert await one(f"{session_id}-alone", word, [1] * sum(chunks)) == bits
    for (_, word, chunks), bits in zip(plans, together, strict=True):
        assert bits == reference_bits(word, sum(chunks))


async def test_a_stream_carries_many_sessions_and_answers_each(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        for index, word in enumerate(WORDS):
            await stream.send(f"many-{index}", open=g2p(word))
            await stream.send(f"many-{index}", generate=pb.Generate())
        tokens: dict[str, list[str]] = {f"many-{index}": [] for index in range(len(WORDS))}
        finished = 0
        while finished < len(WORDS):
            response = await stream.read()
            tokens[response.session_id] += [token.text for token in response.generated.tokens]
            finished += response.generated.finish_reason == pb.FINISH_REASON_EOS
    names = (G2P / "target.txt").read_text().splitlines()
    for index, word in enumerate(WORDS):
        expected = ReferenceSession(G2P, source_ids(word)).generate(64)
        assert tokens[f"many-{index}"] == [names[token] for token in expected]


async def test_a_generation_streams_its_tokens_as_they_are_made(tiny_service: LocalService) -> None:
    async with grpc.aio.insecure_channel(tiny_service.target) as channel:
        request = pb.GenerateRequest(
            model="tiny-endless",
            prompt=pb.Sequence(ids=pb.TokenIds(ids=[1])),
            decoding=pb.Decoding(max_tokens=5000),
        )
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request)
        counts = [len(response.generated.tokens) async for response in call]
    # tokens that are generated while a response is written share the next response
    assert sum(counts) == 5000
    assert len(counts) > 10


async def test_the_responses_of_a_generation_have_its_position(shipped_service: LocalService) -> None:
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        request = pb.GenerateRequest(
            model="g2p-en",
            source=pb.Sequence(text="Carousel"),
            prompt=pb.Sequence(tokens=pb.TokenNames(names=["K"])),
            decoding=pb.Decoding(log_probabilities=True),
        )
        responses = [r async for r in inference_pb2_grpc.InferenceStub(channel).Generate(request)]
    position = 1
    for response in responses:
        position += len(response.generated.tokens)
        assert response.position == position
        assert bool(response.generated.finish_reason) is (response is responses[-1])
    tokens = [token for response in responses for token in response.generated.tokens]
    reference = ReferenceSession(G2P, source_ids("carousel"))
    names = (G2P / "target.txt").read_text().splitlines()
    reference.step(names.index("K"))
    assert [token.text for token in tokens] == [names[token] for token in reference.generate(64)]
    assert all(-20 < token.log_probability <= 0 for token in tokens)
    assert responses[-1].generated.finish_reason == pb.FINISH_REASON_EOS


async def test_an_opening_with_outputs_returns_the_first_outputs(shipped_service: LocalService) -> None:
    outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
    async with wire(shipped_service.target) as stream:
        opened = (await stream.ask(open=g2p("Gate", outputs=outputs))).opened
    assert [(token.id, token.text) for token in opened.source] == list(zip(source_ids("gate"), "gate", strict=True))
    expected = ReferenceSession(G2P, source_ids("gate")).logits
    assert expected is not None
    assert np.array(opened.output.logits, np.float32).tobytes() == expected.tobytes()


async def test_generations_and_feeds_continue_from_each_other(
    shipped_service: LocalService,
) -> None:
    reference = ReferenceSession(G2P, source_ids("carousel"))
    names = (G2P / "target.txt").read_text().splitlines()
    async with wire(shipped_service.target) as stream:
        await stream.ask(open=g2p())
        await stream.ask(feed=pb.Feed(tokens=["S", "EH"]))
        reference.step(names.index("S"))
        reference.step(names.index("EH"))
        await stream.send(generate=pb.Generate(position=2, decoding=pb.Decoding(max_tokens=2)))
        tokens, last = await stream.generated()
        assert tokens == [names[token] for token in reference.generate(2)]
        assert last.generated.finish_reason == pb.FINISH_REASON_MAX_TOKENS
        assert last.position == 4
        fed = await stream.ask(feed=pb.Feed(tokens=["T"], position=4, outputs=LOGITS))
        expected = reference.step(names.index("T"))
        assert np.array(fed.fed.outputs[0].logits, np.float32).tobytes() == expected.tobytes()


async def test_top_k_gives_the_most_likely_tokens_with_their_log_probabilities(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask(open=g2p())
        top = pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=42)
        tokens = (await stream.ask(feed=pb.Feed(tokens=["K"], outputs=top))).fed.outputs[0].tokens
    probabilities = [token.log_probability for token in tokens]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(np.exp(probabilities)) == pytest.approx(1.0, abs=1e-5)
    assert len({token.id for token in tokens}) == 42


async def test_a_feed_sent_again_is_answered_again_and_applied_once(shipped_service: LocalService) -> None:
    feed = pb.Feed(tokens=["K", "EH"], position=0, outputs=LOGITS)
    async with wire(shipped_service.target) as stream:
        await stream.ask(open=g2p())
        # sends the feed twice before the first answer, and once after it
        first_id, second_id = await stream.send(feed=feed), await stream.send(feed=feed)
        first, second = await stream.read(), await stream.read()
        third = await stream.ask(feed=feed)
        assert (first.request_id, second.request_id) == (first_id, second_id)
        assert [r.fed.replayed for r in (first, second, third)] == [False, True, True]
        assert first.fed.outputs == second.fed.outputs == third.fed.outputs
        assert [r.position for r in (first, second, third)] == [2, 2, 2]
        after = await stream.ask(feed=pb.Feed(tokens=["R"], position=2, outputs=LOGITS))
        assert after.position == 3
        too_late = await stream.ask(feed=feed)
        assert too_late.error.reason == "POSITION_MISMATCH"
        assert too_late.error.metadata["position"] == "3"


async def test_pipelined_feeds_are_applied_in_order_and_a_wrong_one_harms_no_other(
    shipped_service: LocalService,
) -> None:
    tokens = phoneme_ids("pipeline", 20)
    async with wire(shipped_service.target) as stream:
        await stream.send("pipe", open=g2p())
        for position, token in enumerate(tokens):
            await stream.send("pipe", feed=pb.Feed(token_ids=[token], position=position, outputs=LOGITS))
            if position == 10:
                await stream.send("pipe", feed=pb.Feed(token_ids=[token], position=99))
        responses = [await stream.read() for _ in range(22)]
    refused = [response for response in responses if response.HasField("error")]
    assert [response.error.reason for response in refused] == ["POSITION_MISMATCH"]
    logits = [value for r in responses if r.HasField("fed") for value in r.fed.outputs[0].logits]
    reference = ReferenceSession(G2P, source_ids("carousel"))
    expected = np.array([reference.step(token) for token in tokens], np.float32)
    assert np.array(logits, np.float32).tobytes() == expected.tobytes()


async def test_cancel_ends_a_generation_at_a_token_and_the_session_continues(tiny_service: LocalService) -> None:
    decoding = pb.Decoding(max_tokens=60_000)
    async with wire(tiny_service.target) as stream:
        await stream.ask("c", open=lm("tiny-endless"))
        generate = await stream.send("c", generate=pb.Generate(decoding=decoding))
        for _ in range(5):
            assert (await stream.read()).HasField("generated")
        cancel = await stream.send("c", cancel=pb.Cancel())
        response = await stream.read()
        position = response.position
        while response.HasField("generated"):
            position = response.position
            response = await stream.read()
        assert response.request_id == generate
        assert (response.error.code, response.error.reason) == (grpc.StatusCode.CANCELLED.value[0], "CANCELLED")
        assert response.position == position
        cancelled = await stream.read()
        assert (cancelled.request_id, cancelled.cancelled.request_count) == (cancel, 1)
        assert (await stream.ask("c", feed=pb.Feed(token_ids=[5], position=position))).position == position + 1


async def test_stop_tokens_and_min_tokens_decide_where_a_generation_ends(
    shipped_service: LocalService,
) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask("stop", open=g2p("elephant"))
        stop = pb.Decoding(stop_tokens=["F"])
        await stream.send("stop", generate=pb.Generate(decoding=stop))
        tokens, last = await stream.generated()
        assert (tokens, last.generated.finish_reason) == (["EH", "L", "AH"], pb.FINISH_REASON_STOP)
        assert last.position == 3
        await stream.send("stop", generate=pb.Generate(position=3))
        tokens, last = await stream.generated()
        assert (tokens, last.generated.finish_reason) == (["F", "AH", "N", "T"], pb.FINISH_REASON_EOS)
        least = pb.Decoding(min_tokens=3, max_tokens=5)
        await stream.send("stop", generate=pb.Generate(position=7, decoding=least))
        tokens, _ = await stream.generated()
        assert 3 <= len(tokens) <= 5


async def test_a_repetition_penalty_makes_tokens_seen_less_likely(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        distinct = []
        for index, penalty in enumerate((1.0, 100.0)):
            await stream.ask(f"again-{index}", open=lm("tiny-endless"))
            decoding = pb.Decoding(max_tokens=16, repetition_penalty=penalty)
            await stream.send(f"again-{index}", generate=pb.Generate(decoding=decoding))
            tokens, _ = await stream.generated()
            distinct.append(len(set(tokens)))
        assert distinct[1] > distinct[0]


async def info(service: LocalService, session_id: str) -> sessions_pb2.SessionInfo:
    async with grpc.aio.insecure_channel(service.target) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)
        return (await stub.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))).session


async def gone(service: LocalService, session_id: str) -> str:
    """Waits until a session is gone. Returns the server's message about it."""

    async def message() -> str | None:
        try:
            await info(service, session_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return str(error.details())
        return None

    return await until(message)


@pytest.mark.parametrize("how", ["cancelled", "half-closed", "connection lost", "deadline"])
async def test_whatever_ends_a_stream_frees_its_sessions(tiny_service: LocalService, how: str) -> None:
    session_id = f"ends-{how.replace(' ', '-')}"
    decoding = pb.Decoding(max_tokens=60_000)
    channel = grpc.aio.insecure_channel(tiny_service.target)
    timeout = 0.5 if how == "deadline" else None
    stream = Wire(inference_pb2_grpc.InferenceStub(channel).Stream(timeout=timeout))
    await stream.ask(session_id, open=lm("tiny-endless"))
    assert (await info(tiny_service, session_id)).state == sessions_pb2.SESSION_STATE_IDLE
    if how != "half-closed":
        await stream.send(session_id, generate=pb.Generate(decoding=decoding))
        await stream.read()
    if how == "cancelled":
        stream.call.cancel()
    elif how == "half-closed":
        await stream.call.done_writing()
        assert await stream.call.code() is grpc.StatusCode.OK
    elif how == "connection lost":
        await channel.close(grace=None)
    assert "was closed when its stream or call ended" in await gone(tiny_service, session_id)
    await channel.close(grace=None)


async def test_a_half_closed_stream_still_gets_every_answer(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.send(open=g2p())
        await stream.send(feed=pb.Feed(tokens=["K"]))
        await stream.send(generate=pb.Generate())
        await stream.call.done_writing()
        assert (await stream.read()).HasField("opened")
        assert (await stream.read()).HasField("fed")
        tokens, _ = await stream.generated()
        assert tokens
        assert await stream.call.read() is grpc.aio.EOF
        assert await stream.call.code() is grpc.StatusCode.OK


async def test_an_idle_session_is_closed_and_its_stream_and_later_requests_get_the_reason(g2p_repository: Path) -> None:
    with local_service(g2p_repository, {"idle-timeout-s": 0.2}) as service:
        async with wire(service.target) as stream:
            await stream.ask("idle", open=g2p())
            await stream.ask("idle", feed=pb.Feed(tokens=["K"]))
            notice = await stream.read()
            assert (notice.request_id, notice.session_id, notice.position) == (0, "idle", 1)
            assert notice.closed.reason == pb.CLOSE_REASON_IDLE
            back = await stream.ask("idle", feed=pb.Feed(tokens=["EH"], position=1))
            assert back.error.code == grpc.StatusCode.NOT_FOUND.value[0]
            assert back.error.message.startswith("session_id = 'idle' is gone: it was closed because it was idle")
            assert back.error.metadata["close_reason"] == "idle"
            assert back.error.metadata["position"] == "1"
            assert (await stream.ask("idle", open=g2p())).HasField("opened")


async def test_a_stream_is_notified_when_its_session_is_closed_by_a_call(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("outside", open=lm())
        await stream.ask("outside", feed=pb.Feed(token_ids=[5, 6]))
        async with grpc.aio.insecure_channel(tiny_service.target) as channel:
            stub = sessions_pb2_grpc.SessionsStub(channel)
            closed = await stub.Close(sessions_pb2.SessionsCloseRequest(session_id="outside"))
        assert (closed.position, closed.reason) == (2, pb.CLOSE_REASON_CLIENT)
        notice = await stream.read()
        assert (notice.request_id, notice.closed.reason) == (0, pb.CLOSE_REASON_CLIENT)
        assert "was closed by a client" in await gone(tiny_service, "outside")


async def test_sessions_are_listed_page_by_page_in_the_order_of_opening(tiny_service: LocalService) -> None:
    ids = [f"page-{index}" for index in range(7)]
    async with wire(tiny_service.target) as stream, grpc.aio.insecure_channel(tiny_service.target) as channel:
        for session_id in ids:
            await stream.ask(session_id, open=lm())
        await stream.ask("page-0", feed=pb.Feed(token_ids=[5]))  # using a session does not change the order
        stub, token, found = sessions_pb2_grpc.SessionsStub(channel), "", []
        while True:
            request = sessions_pb2.SessionsListRequest(model="tiny-lm", page_size=3, page_token=token)
            page = await stub.List(request)
            assert len(page.sessions) <= 3
            found += [session.session_id for session in page.sessions if session.session_id in ids]
            token = page.next_page_token
            if not token:
                break
    assert found == ids


async def test_a_session_may_not_have_too_many_requests_in_flight(g2p_repository: Path) -> None:
    with local_service(g2p_repository, {"max-in-flight": 4}) as service:
        async with wire(service.target) as stream:
            await stream.ask("flood", open=g2p())
            feeds = [await stream.send("flood", feed=pb.Feed(token_ids=[5] * 3000)) for _ in range(12)]
            responses = [await stream.read() for _ in feeds]
            refused = [r for r in responses if r.HasField("error")]
            assert {r.error.reason for r in refused} == {"QUEUE_FULL"}
            assert all(r.error.retry_delay.ToMilliseconds() == 100 for r in refused)
            assert 4 <= len(responses) - len(refused) < 12
            # refused requests were not applied, and admitted requests were applied once
            position = 3000 * (len(responses) - len(refused))
            assert (await stream.ask("flood", feed=pb.Feed(token_ids=[5], position=position))).position == position + 1


async def test_a_stalled_reader_stops_its_generation_and_delays_no_other(tiny_service: LocalService) -> None:
    decoding = pb.Decoding(max_tokens=60_000)
    # the client buffers 64 KiB of unread data, and without the BDP probe this limit does not grow
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with wire(tiny_service.target, narrow) as stalled, wire(tiny_service.target) as other:
        await stalled.ask("stalled", open=lm("tiny-endless"))
        await stalled.send("stalled", generate=pb.Generate(decoding=decoding))
        await other.ask("other", open=lm("tiny-endless"))
        positions: list[int] = []
        while len(positions) < 3 or positions[-1] != positions[-3]:
            for _ in range(200):
                assert (await other.ask("other", feed=pb.Feed(token_ids=[5]))).HasField("fed")
            positions.append((await info(tiny_service, "stalled")).position)
            assert len(positions) < 200
        # the responses in flight fill this buffer and the generation's window, which is far less than what was
        # requested
        assert 0 < positions[-1] < 20_000
        while (response := await stalled.read()).position < positions[-1] + 100:
            assert response.HasField("generated")


async def test_answers_are_not_computed_far_ahead_of_a_reader_that_stalls(tmp_path: Path) -> None:
    """Each answer has the logits of 100 steps over thousands of tokens."""
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
    opening = pb.Open(model="translate-en-de", source=pb.Sequence(text="It rains."))
    names, num_tokens, rounds = [f"heavy-{number}" for number in range(4)], 100, 5
    with local_service(only(tmp_path, opening.model), {"max-batch-rows": 8}) as service:
        async with wire(service.target, narrow) as stalled, wire(service.target) as other:
            for name in names:
                await stalled.ask(name, open=opening)
            for _ in range(rounds):
                for name in names:
                    await stalled.send(name, feed=pb.Feed(token_ids=[5] * num_tokens, outputs=outputs))
            await other.ask("other", open=opening)
            numbers: list[int] = []
            while len(numbers) < 3 or numbers[-1] != numbers[-3]:
                for _ in range(50):
                    assert (await other.ask("other", feed=pb.Feed(token_ids=[5]))).HasField("fed")
                numbers.append(sum([(await info(service, name)).position for name in names]) // num_tokens)
                assert len(numbers) < 200
            assert 0 < numbers[-1] < 3 * rounds
            responses = [await stalled.read() for _ in range(4 * rounds)]
            assert responses[0].ByteSize() > 2_000_000
            positions = [response.position for response in responses if response.session_id == names[0]]
            assert positions == [num_tokens * count for count in range(1, rounds + 1)]
            assert all(len(response.fed.outputs) == num_tokens for response in responses)

"""Combinations of features on a real server: spills, rewinds, closes, ids and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.end_to_end.wire import Wire, lm, wire
from tests.services import local_service
from tests.waiting import until

KEEP = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP)
HOLD = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
RESUME = pb.Open(resume=pb.Resume())


@asynccontextmanager
async def sessions_of(service: LocalService) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield sessions_pb2_grpc.SessionsStub(channel)


async def none_left(sessions: Any) -> bool:
    return not (await sessions.List(sessions_pb2.SessionsListRequest())).total_count


async def test_a_step_batch_steps_a_session_that_was_spilled_and_restored(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-slots": 1}) as service:
        async with wire(service.target) as stream:
            handle = (await stream.ask("a", open=lm())).opened.handle
            await stream.ask("b", open=lm())
            for position in range(1, 4):
                stepped = (await stream.ask(step_batch=pb.StepBatch(handles=[handle], token_ids=[5]))).batch_stepped
                assert (list(stepped.positions), len(stepped.errors)) == ([position], 0)
                assert (await stream.ask("b", feed=pb.Feed(token_ids=[6]))).position == position


async def test_a_step_batch_that_waits_for_a_spilled_session_is_not_overtaken(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-slots": 2}) as service:
        async with wire(service.target) as stream:
            handles = []
            for name in "abc":
                handles.append((await stream.ask(name, open=lm())).opened.handle)
                await stream.ask(name, feed=pb.Feed(token_ids=[5], position=0))
            batch = await stream.send(step_batch=pb.StepBatch(handles=[handles[0], handles[2]], token_ids=[6, 6]))
            feed = await stream.send("c", feed=pb.Feed(token_ids=[7]))
            first, second = await stream.read(), await stream.read()
            assert (first.request_id, list(first.batch_stepped.positions)) == (batch, [2, 2])
            assert (second.request_id, second.position) == (feed, 3)


async def test_a_waiting_step_batch_does_not_include_a_session_that_is_opened_after_it(
    tiny_repository: Path, tmp_path: Path
) -> None:
    with local_service(tiny_repository, {"max-slots": 2, "store": "lmdb", "data-folder": tmp_path}) as service:
        async with wire(service.target) as stream:
            for name in "abc":
                await stream.ask(name, open=lm())
            batch = await stream.send(step_batch=pb.StepBatch(handles=[1, 4], token_ids=[6, 6]))
            late = await stream.send("late", open=lm(durability=pb.DURABILITY_STRICT))
            feed = await stream.send("late", feed=pb.Feed(token_ids=[7], position=0))
            await stream.call.done_writing()
            found = [await stream.read() for _ in range(3)]
            answers = {answer.request_id: answer for answer in found}
            stepped = answers[batch].batch_stepped
            assert [(error.index, error.error.reason) for error in stepped.errors] == [(1, "SESSION_NOT_OPEN")]
            assert list(stepped.positions) == [1, 0]
            assert answers[late].opened.handle == 4
            assert answers[feed].position == 1
        async with sessions_of(service) as sessions:
            await until(lambda: none_left(sessions))


async def test_the_same_step_batch_after_a_rewind_is_applied(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream, sessions_of(tiny_service) as sessions:
        handle = (await stream.ask("rewound", open=lm(on_disconnect=HOLD))).opened.handle
        await stream.ask("rewound", feed=pb.Feed(token_ids=[5, 6], position=0, mark=True))
        batch = pb.StepBatch(handles=[handle], token_ids=[7], positions=[2])
        answers = [(await stream.ask(step_batch=batch)).batch_stepped for _ in range(2)]
        assert [answer.replayed for answer in answers] == [False, True]
        await sessions.Rewind(sessions_pb2.SessionsRewindRequest(session_id="rewound", position=2))
        again = (await stream.ask(step_batch=batch)).batch_stepped
        assert (again.replayed, list(again.positions)) == (False, [3])
        found = await sessions.Get(sessions_pb2.SessionsGetRequest(session_id="rewound"))
        assert found.session.position == 3
        await stream.ask("rewound", close=pb.Close())


async def test_the_id_of_a_stored_session_cannot_be_opened_again(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-slots": 1, "idle-timeout-s": 1}) as service:
        async with wire(service.target) as stream:
            await stream.ask("kept", open=lm(on_disconnect=KEEP))
            await stream.ask("kept", feed=pb.Feed(token_ids=[5, 6, 7], position=0))
        async with wire(service.target) as stream, sessions_of(service) as sessions:
            await until(lambda: none_left(sessions))
            refused = (await stream.ask("kept", open=lm())).error
            assert (refused.reason, refused.field) == ("SESSION_ID_IN_USE", "session_id")
            assert (await stream.ask("kept", open=RESUME)).position == 3


async def test_a_refused_opening_leaves_its_id_free(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        wrong = lm("tiny-lm", on_disconnect=KEEP, outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NEXT_TOKEN))
        refused = (await stream.ask("once-refused", open=wrong)).error
        assert refused.field == "open.outputs"
        assert (await stream.ask("once-refused", open=lm(on_disconnect=KEEP))).HasField("opened")
        assert (await stream.ask("once-refused", close=pb.Close())).HasField("closed")


async def test_an_id_can_be_opened_again_after_each_answered_close(tiny_service: LocalService) -> None:
    strict = lm(durability=pb.DURABILITY_STRICT)
    async with wire(tiny_service.target) as stream:
        for _ in range(50):
            assert (await stream.ask("again", open=strict)).HasField("opened")
            assert (await stream.ask("again", feed=pb.Feed(token_ids=[5], position=0))).position == 1
            assert (await stream.ask("again", close=pb.Close())).HasField("closed")


FEED = {"feed": pb.Feed(token_ids=[5])}
BATCH = {"step_batch": pb.StepBatch(handles=[1], token_ids=[5])}


@pytest.mark.parametrize(
    "between",
    [[], [FEED], [BATCH], [{"cancel": pb.Cancel()}], [FEED, BATCH, FEED]],
    ids=["nothing", "feed", "batch", "cancel", "all"],
)
async def test_a_half_closed_stream_answers_all_requests_after_a_strict_opening(
    tiny_service: LocalService, between: list[dict[str, Any]]
) -> None:
    async def one() -> list[int]:
        async with wire(tiny_service.target) as stream:
            sent = [await stream.send(open=lm(durability=pb.DURABILITY_STRICT))]
            sent += [await stream.send(**request) for request in between]
            sent.append(await stream.send(close=pb.Close()))
            await stream.call.done_writing()
            answered = [await _answer(stream) for _ in sent]
            assert await stream.call.read() is grpc.aio.EOF
            assert sorted(answered) == sent
            return answered

    await asyncio.wait_for(asyncio.gather(*(one() for _ in range(10))), 30)


async def _answer(stream: Wire) -> int:
    return (await stream.read()).request_id


async def test_a_step_batch_of_too_many_unknown_sessions_is_refused_and_the_stream_continues(
    tiny_service: LocalService,
) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("here", open=lm())
        handles = list(range(1000, 131_000))
        refused = (await stream.ask(step_batch=pb.StepBatch(handles=handles, token_ids=[1] * len(handles)))).error
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "ANSWER_TOO_LARGE")
        handles = [*handles[:40_000], handles[39_999]]
        doubled = (await stream.ask(step_batch=pb.StepBatch(handles=handles, token_ids=[1] * len(handles)))).error
        assert doubled.message == "step_batch.handles[40000] = 40999 is a duplicate"
        too_many = (await stream.ask(step_batch=pb.StepBatch(handles=range(1, 200_000)))).error
        assert too_many.reason == "SEQUENCE_TOO_LONG"
        assert (await stream.ask("here", feed=pb.Feed(token_ids=[5]))).position == 1


async def test_a_generation_whose_session_another_stream_resumes_is_answered(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with wire(service.target) as first, wire(service.target) as second:
            await first.ask("taken", open=lm("tiny-endless", on_disconnect=HOLD))
            generate = await first.send("taken", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
            await first.read()
            resumed = await second.ask("taken", open=RESUME)
            assert resumed.opened.restored_from == pb.RESTORED_FROM_MEMORY
            await first.call.done_writing()
            reasons = []
            while (response := await first.call.read()) is not grpc.aio.EOF:
                if response.request_id == generate and response.HasField("error"):
                    reasons.append(response.error.reason)
            assert reasons == ["SESSION_MOVED"]


async def test_nothing_is_left_when_all_streams_have_ended(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"idle-timeout-s": 1, "max-slots": 3}) as service:
        for turn in range(20):
            async with wire(service.target) as stream:
                await stream.send(f"plain{turn}", open=lm())
                await stream.send(open=lm(durability=pb.DURABILITY_STRICT))
                await stream.send(f"busy{turn}", open=lm("tiny-endless"))
                await stream.send(f"busy{turn}", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
                await asyncio.sleep(0.002 * (turn % 4))  # the stream ends in another state each time
        async with sessions_of(service) as sessions:
            await until(lambda: none_left(sessions))
        assert not [line for line in service.log if line["level"] == "error"]


async def test_a_session_can_be_opened_closed_and_opened_again_without_waiting_for_answers(
    tiny_service: LocalService,
) -> None:
    kept, close = {"open": lm(on_disconnect=KEEP, durability=pb.DURABILITY_STRICT)}, {"close": pb.Close()}
    async with wire(tiny_service.target) as stream:
        for _ in range(40):
            sent = [await stream.send("thrice", **one) for one in (kept, close, kept, close)]
            answered: set[int] = set()
            while answered != set(sent):
                answered.add((await stream.read()).request_id)


async def test_a_resumption_that_is_refused_loses_no_session(tiny_repository: Path, tmp_path: Path) -> None:
    """A session that is being restored when the server shuts down is not lost either."""
    settings = {"store": "lmdb", "data-folder": tmp_path, "max-slots": 1, "shutdown-grace-s": 0}
    strict = lm(durability=pb.DURABILITY_STRICT, on_disconnect=KEEP)
    names = [f"k{number}" for number in range(6)]
    with local_service(tiny_repository, settings) as service:
        async with wire(service.target) as stream:
            for name in names:
                await stream.ask(name, open=strict)
                assert (await stream.ask(name, feed=pb.Feed(token_ids=[5, 6], position=0))).position == 2
    for _ in range(3):
        with local_service(tiny_repository, settings) as service:
            async with wire(service.target) as stream:
                for name in names:
                    await stream.send(name, **{"open": RESUME})
                await stream.read()
    with local_service(tiny_repository, settings) as service:
        for name in names:
            async with wire(service.target) as stream:
                assert (await stream.ask(name, open=RESUME)).position == 2


async def test_a_strict_copy_is_stored_before_it_is_answered(tiny_repository: Path, tmp_path: Path) -> None:
    settings = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 3600}
    with local_service(tiny_repository, settings) as service:
        async with wire(service.target) as stream, sessions_of(service) as sessions:
            await stream.ask("first", open=lm(durability=pb.DURABILITY_STRICT, on_disconnect=KEEP))
            await stream.ask("first", feed=pb.Feed(token_ids=[5, 6], position=0))
            forked = await sessions.Fork(sessions_pb2.SessionsForkRequest(session_id="first", fork_session_id="copy"))
            assert forked.session.checkpoint_position == 2


async def test_a_repeated_generation_continues_from_the_received_position(
    tiny_service: LocalService,
) -> None:
    decoding = pb.Decoding(max_tokens=12, min_tokens=12, sampling=pb.Sampling(seed=5, temperature=1.0))

    async def tokens(name: str, **more: int) -> list[int]:
        async with wire(tiny_service.target) as stream:
            await stream.ask(name, open=lm())
            await stream.ask(name, feed=pb.Feed(token_ids=[5], position=0))
            await stream.send(name, generate=pb.Generate(position=1, decoding=decoding, **more))
            found: list[int] = []
            while True:
                generated = (answer := await stream.read()).generated
                found += [token.id for token in generated.tokens]
                if generated.finish_reason:
                    assert answer.position == 13
                    return found

    whole = await tokens("whole")
    assert len(whole) == 12
    for received in (1, 5, 12, 13):
        assert await tokens(f"from-{received}", received_position=received) == whole[received - 1 :]


async def test_a_stored_session_can_be_closed_on_a_server_that_is_full(tiny_repository: Path, tmp_path: Path) -> None:
    """Closing needs no place. A second Close, or a resume, gets an error that says that the session is closed."""
    flags = {"max-sessions": 1, "store": "lmdb", "data-folder": tmp_path}
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("kept", open=lm(on_disconnect=KEEP))
            await stream.ask("kept", feed=pb.Feed(token_ids=[5, 6]))
    with local_service(tiny_repository, flags) as service:
        async with sessions_of(service) as sessions, wire(service.target) as stream:
            await stream.ask("live", open=lm())
            refused = await stream.ask("kept", open=RESUME)
            assert refused.error.reason == "TOO_MANY_SESSIONS"
            request = sessions_pb2.SessionsCloseRequest(session_id="kept")
            calls = [sessions.Close(request), sessions.Close(request)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            first = next(one for one in answers if isinstance(one, sessions_pb2.SessionsCloseResponse))
            second = next(one for one in answers if isinstance(one, grpc.aio.AioRpcError))
            assert (first.position, first.reason) == (2, pb.CLOSE_REASON_CLIENT)
            assert second.code() is grpc.StatusCode.NOT_FOUND
            await stream.ask("live", close=pb.Close())
            gone = await stream.ask("kept", open=RESUME)
            assert dict(gone.error.metadata)["close_reason"] == "client"
            assert (await stream.ask("kept", open=lm())).opened.restored_from == pb.RESTORED_FROM_UNSPECIFIED


@pytest.mark.parametrize(("seconds", "nanos"), [(1, -5), (-1, 5), (1, 10**9), (0, -(10**9))])
async def test_an_invalid_duration_is_refused(tiny_service: LocalService, seconds: int, nanos: int) -> None:
    policy = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
    policy.duration.seconds, policy.duration.nanos = seconds, nanos
    async with wire(tiny_service.target) as stream:
        refused = (await stream.ask("odd", open=lm(on_disconnect=policy))).error
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "open.on_disconnect.duration")
    assert refused.message.startswith(f"open.on_disconnect.duration has {seconds} seconds and {nanos} nanos")

"""Sessions that are used with `Step` calls: they are held between the calls, and no call counts twice."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from benchmarks.faults import Proxy
from carousel import AsyncClient, NotFoundError, ResourceExhaustedError
from carousel.v1 import error_pb2, inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb
from examples.local_envoy import local_envoy
from examples.local_service import LocalService
from tests.end_to_end import web
from tests.end_to_end.test_operation import scrape
from tests.end_to_end.wire import wire
from tests.reference import ReferenceSession
from tests.services import local_service, program, redis_server
from tests.waiting import until

Code = grpc.StatusCode
MODEL = "tiny-endless"
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
FREE = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_FREE)
KEEP = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP)


class Stubs(NamedTuple):
    """The stubs of one connection."""

    inference: Any
    sessions: Any

    async def step(self, session_id: str = "", deadline_s: float | None = None, **fields: Any) -> pb.StepResponse:
        """Makes one Step call. Returns its response."""
        request = pb.StepRequest(session_id=session_id, **fields)
        answer = await self.inference.Step(request, timeout=deadline_s)
        assert isinstance(answer, pb.StepResponse)
        return answer

    async def refused(self, session_id: str = "", **fields: Any) -> error_pb2.Error:
        """Makes a Step call that must fail. Returns its error."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.step(session_id, **fields)
        for key, value in failed.value.trailing_metadata() or ():
            if key == "carousel-error-bin" and isinstance(value, bytes):
                error = error_pb2.Error.FromString(value)
                assert failed.value.code().value[0] == error.code
                return error
        raise AssertionError(failed.value)


@asynccontextmanager
async def stubs(target: str) -> AsyncIterator[Stubs]:
    async with grpc.aio.insecure_channel(target) as channel:
        yield Stubs(inference_pb2_grpc.InferenceStub(channel), sessions_pb2_grpc.SessionsStub(channel))


def fed(*tokens: int, position: int | None = None, **fields: Any) -> pb.Feed:
    return pb.Feed(token_ids=tokens, position=position, outputs=LOGITS, **fields)


def expected(repository: Path, *tokens: int) -> list[float]:
    """Returns the logits after all of the tokens."""
    reference = ReferenceSession(repository / MODEL / "1")
    found: list[float] = []
    for token in tokens:
        found = reference.step(token).tolist()
    return found


async def test_steps_give_the_bits_of_a_stream(tiny_service: LocalService, tiny_repository: Path) -> None:
    async with stubs(tiny_service.target) as calls:
        first = await calls.step("bits", open=pb.Open(model=MODEL), feed=fed(5, 6, position=0))
        assert (first.session_id, first.position, first.opened.model) == ("bits", 2, MODEL)
        assert first.opened.restored_from == pb.RESTORED_FROM_UNSPECIFIED
        assert first.opened.durability == pb.DURABILITY_CHECKPOINT
        assert list(first.fed.outputs[0].logits) == expected(tiny_repository, 5, 6)
        second = await calls.step("bits", feed=fed(7, position=2))
        assert (second.position, second.opened.restored_from) == (3, pb.RESTORED_FROM_MEMORY)
        assert list(second.fed.outputs[0].logits) == expected(tiny_repository, 5, 6, 7)
        last = await calls.step("bits", feed=fed(8, position=3), close=True)
        assert list(last.fed.outputs[0].logits) == expected(tiny_repository, 5, 6, 7, 8)
        assert last.closed.reason == pb.CLOSE_REASON_CLIENT
        again = await calls.step("bits", feed=fed(8, position=3), close=True)
        assert (again.fed.replayed, again.fed.outputs, again.closed) == (True, last.fed.outputs, last.closed)
        gone = await calls.refused("bits", close=True)
        assert (gone.reason, gone.metadata["close_reason"], gone.metadata["position"]) == (
            "SESSION_NOT_FOUND",
            "client",
            "4",
        )


async def test_a_call_without_feed_and_close_opens_and_returns_the_position(tiny_service: LocalService) -> None:
    async with stubs(tiny_service.target) as calls:
        opened = await calls.step(open=pb.Open(model=MODEL, outputs=pb.OutputSpec()))
        name = opened.session_id
        assert name
        assert (opened.position, opened.HasField("fed"), opened.HasField("closed")) == (0, False, False)
        assert len(opened.opened.output.tokens) == 1
        assert (await calls.step(name, feed=pb.Feed(token_ids=[5]))).position == 1
        answer = await calls.step(name)
        assert (answer.position, answer.opened.restored_from) == (1, pb.RESTORED_FROM_MEMORY)
        again = await calls.step(name, open=pb.Open(model=MODEL))
        assert (again.position, again.opened.restored_from) == (1, pb.RESTORED_FROM_MEMORY)
        closed = await calls.step(name, close=True)
        assert (closed.position, closed.closed.reason) == (1, pb.CLOSE_REASON_CLIENT)


async def test_a_call_sent_again_is_answered_again_and_applied_once(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    async with stubs(tiny_service.target) as calls:
        request: dict[str, Any] = {"open": pb.Open(model=MODEL), "feed": fed(5, 6, position=0)}
        first = await calls.step("again", **request)
        second = await calls.step("again", **request)
        assert (first.fed.replayed, second.fed.replayed, second.position) == (False, True, 2)
        assert first.fed.outputs == second.fed.outputs
        for wrong in (fed(5, 7, position=0), fed(7, position=1), fed(7, position=3)):
            error = await calls.refused("again", feed=wrong)
            assert (error.code, error.reason) == (Code.FAILED_PRECONDITION.value[0], "POSITION_MISMATCH")
            assert error.metadata["position"] == "2"
            assert error.message == f"feed.position = {wrong.position}, but the session is at position 2"
        third = await calls.step("again", feed=fed(7, position=2), close=True)
        assert list(third.fed.outputs[0].logits) == expected(tiny_repository, 5, 6, 7)


@pytest.mark.parametrize("tokens", [None, [7]])
async def test_a_client_whose_closing_call_lost_its_answer_gets_it_again(
    tiny_service: LocalService, tokens: list[int] | None
) -> None:
    proxy = Proxy(int(tiny_service.target.rpartition(":")[2]))
    await proxy.start()
    async with AsyncClient(f"127.0.0.1:{proxy.port}") as client, stubs(tiny_service.target) as calls:
        name = "lost" if tokens is None else "lost-with-feed"
        await client.step(name, [5, 6], model=MODEL, position=0)
        proxy.is_mute = True
        position = None if tokens is None else 2
        calling = asyncio.create_task(client.step(name, tokens, position=position, close=True))

        async def is_closed() -> bool:
            try:
                await info(calls, name)
            except grpc.aio.AioRpcError as error:
                return error.code() is Code.NOT_FOUND
            return False

        await until(is_closed)
        proxy.cut()
        proxy.is_mute = False
        answer = await calling
        assert (answer.position, answer.closed) == (2 + len(tokens or ()), "client")
        assert answer.replayed == (tokens is not None)
    await proxy.stop()


async def test_a_feed_that_differs_in_its_mark_is_no_retry(tiny_service: LocalService) -> None:
    async with stubs(tiny_service.target) as calls:
        await calls.step("marked", open=pb.Open(model=MODEL), feed=fed(5, position=0))
        error = await calls.refused("marked", feed=fed(5, position=0, mark=True))
        assert (error.reason, error.metadata["position"]) == ("POSITION_MISMATCH", "1")
        await calls.step("marked", feed=fed(6, position=1, mark=True))
        assert (await calls.step("marked", feed=fed(6, position=1, mark=True))).fed.replayed
        assert (await calls.refused("marked", feed=fed(6, position=1))).reason == "POSITION_MISMATCH"
        assert (await info(calls, "marked")).marks == [2]


async def test_a_step_call_on_a_streams_session_is_refused(tiny_service: LocalService) -> None:
    async with stubs(tiny_service.target) as calls:
        async with wire(tiny_service.target) as stream:
            held = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
            await stream.ask("streamed", open=pb.Open(model=MODEL, on_disconnect=held))
            for request in ({}, {"feed": fed(5)}, {"close": True}, {"open": pb.Open(model=MODEL)}):
                error = await calls.refused("streamed", **request)
                assert (error.code, error.reason) == (Code.FAILED_PRECONDITION.value[0], "SESSION_NOT_OPEN")
                assert error.message == (
                    "session 'streamed' is attached to a stream: use it on that stream, or end the stream"
                )
            assert (await stream.ask("streamed", feed=fed(5, position=0))).position == 1
        async with wire(tiny_service.target) as stream:  # the previous stream has ended, or this one takes over
            await stream.ask("streamed", open=pb.Open(resume=pb.Resume()))

        async def is_detached() -> bool:
            return not (await info(calls, "streamed")).attached

        await until(is_detached)
        assert (await calls.step("streamed", feed=fed(6, position=1))).position == 2
        async with wire(tiny_service.target) as stream:
            resumed = await stream.ask("streamed", open=pb.Open(resume=pb.Resume()))
            assert (resumed.position, resumed.opened.restored_from) == (2, pb.RESTORED_FROM_MEMORY)
            await stream.ask("streamed", close=pb.Close())


async def test_an_opening_is_checked_before_its_id(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("known", open=pb.Open(model=MODEL))
        answer = await stream.ask("known", open=pb.Open())
        assert (answer.error.reason, answer.error.field) == ("INVALID_FIELD", "open.model")
        again = await stream.ask("known", open=pb.Open(model=MODEL))
        assert again.error.reason == "SESSION_ALREADY_OPEN"


async def info(calls: Stubs, session_id: str) -> sessions_pb2.SessionInfo:
    answer = await calls.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))
    assert isinstance(answer, sessions_pb2.SessionsGetResponse)
    return answer.session


async def is_busy(calls: Stubs, session_id: str) -> bool:
    return (await info(calls, session_id)).state == sessions_pb2.SESSION_STATE_BUSY


def num_batches(service: LocalService) -> float:
    """Returns how many batches the server's engines have run."""
    return sum(count for (name, _), count in scrape(service).items() if name == "carousel_batch_size_count")


async def test_calls_of_one_session_at_once_are_carried_out_in_order(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    tokens = [5, 6, 7] * 4000
    async with stubs(tiny_service.target) as calls:
        await calls.step("order", open=pb.Open(model=MODEL))
        first = asyncio.create_task(calls.step("order", feed=fed(*tokens, position=0)))

        async def has_begun() -> bool:
            return first.done() or await is_busy(calls, "order")

        await until(has_begun)
        second = await calls.step("order", feed=fed(8, position=len(tokens)))
        assert ((await first).position, second.position) == (len(tokens), len(tokens) + 1)
        assert list(second.fed.outputs[0].logits) == expected(tiny_repository, *tokens, 8)
        at = second.position
        many = await asyncio.gather(*(calls.step("order", feed=fed(5)) for _ in range(20)))
        assert sorted(one.position for one in many) == list(range(at + 1, at + 21))
        at += 20
        same = await asyncio.gather(*(calls.step("order", feed=fed(5, position=at)) for _ in range(5)))
        assert sorted(one.fed.replayed for one in same) == [False, True, True, True, True]
        assert {one.position for one in same} == {at + 1}
        await calls.step("order", close=True)


async def test_too_many_concurrent_calls_of_a_session_are_refused(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-in-flight": 1, "max-chunk-tokens": 1}) as service:
        async with stubs(service.target) as calls:
            await calls.step("full", open=pb.Open(model=MODEL))
            feeding = [asyncio.create_task(calls.step("full", feed=fed(*[5] * 4000))) for _ in range(2)]
            while (await info(calls, "full")).state != sessions_pb2.SESSION_STATE_BUSY:
                pass
            error = await calls.refused("full", feed=fed(5))
            assert error.reason == "QUEUE_FULL"
            assert error.message.endswith(", the limit (max_in_flight): wait for responses first")
            await asyncio.gather(*feeding)


async def test_a_feed_whose_client_leaves_is_not_lost(tiny_service: LocalService, tiny_repository: Path) -> None:
    tokens = [5, 6, 7] * 4000
    request: dict[str, Any] = {"open": pb.Open(model=MODEL), "feed": fed(*tokens, position=0)}
    async with stubs(tiny_service.target) as calls:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await calls.step("left", deadline_s=0.02, **request)
        assert failed.value.code() is Code.DEADLINE_EXCEEDED
        leaving = asyncio.create_task(calls.step("left", **request))
        await asyncio.sleep(0.01)  # the call may be anywhere: on its way, waiting or being answered
        leaving.cancel()
        whole = await calls.step("left", **request)
        assert whole.position == len(tokens)
        assert list(whole.fed.outputs[0].logits) == expected(tiny_repository, *tokens)
        assert not (await info(calls, "left")).attached
        await calls.step("left", close=True)


async def failed_on(stream: Any) -> error_pb2.Error:
    """Returns the next error on a stream. Skips other responses, such as the notice of a close."""
    while not (response := await stream.read()).HasField("error"):
        pass
    assert isinstance(response.error, error_pb2.Error)
    return response.error


@pytest.mark.parametrize("durability", [pb.DURABILITY_NONE, pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_close_during_a_feed_returns_the_same_position_everywhere(
    tiny_repository: Path, tmp_path: Path, durability: pb.Durability.ValueType, is_streamed: bool
) -> None:
    """Close, the feed that it ends, and later calls return the same position. If the session is strict, so does the
    server after a restart."""
    tokens = [5, 6, 7] * 20_000
    flags = {"store": "lmdb", "data-folder": tmp_path, "max-chunk-tokens": 1}
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls, wire(service.target) as stream:
            if is_streamed:
                await stream.ask("cut", open=pb.Open(model=MODEL, durability=durability))
                await stream.send("cut", feed=fed(*tokens, position=0))
                feeding = asyncio.create_task(failed_on(stream))
            else:
                await calls.step("cut", open=pb.Open(model=MODEL, durability=durability))
                feeding = asyncio.create_task(calls.refused("cut", feed=fed(*tokens, position=0)))
            await until(lambda: is_busy(calls, "cut"))
            num_before = num_batches(service)
            await until(lambda: num_batches(service) > num_before)
            closed = await calls.sessions.Close(sessions_pb2.SessionsCloseRequest(session_id="cut"))
            error = await feeding
            assert (error.reason, error.metadata["close_reason"]) == ("CANCELLED", "client")
            gone = await calls.refused("cut")
            found = {closed.position, int(error.metadata["position"]), int(gone.metadata["position"])}
            assert len(found) == 1
            assert 0 < closed.position < len(tokens)
        service.kill()
    if durability == pb.DURABILITY_STRICT:
        with local_service(tiny_repository, flags) as service:
            async with stubs(service.target) as calls:
                assert int((await calls.refused("cut")).metadata["position"]) == closed.position


async def test_a_session_lives_between_calls_as_its_policy_says(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {"idle-timeout-s": 0.4, "data-folder": tmp_path}
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls:
            free = await calls.step("free", open=pb.Open(model=MODEL, on_disconnect=FREE), feed=fed(5, position=0))
            assert (free.position, free.closed.reason) == (1, pb.CLOSE_REASON_DISCONNECT)
            freed = await calls.refused("free")
            assert freed.metadata["close_reason"] == "disconnect"
            assert "closed when its stream or call ended, as its on_disconnect says" in freed.message
            short = pb.DisconnectPolicy()
            short.duration.FromMilliseconds(1000)  # the default action is to hold
            await calls.step("short", open=pb.Open(model=MODEL, on_disconnect=short))
            for at in range(3):  # each call restarts the duration
                await asyncio.sleep(0.4)  # three pauses are longer than the duration
                assert (await calls.step("short", feed=fed(5, position=at))).position == at + 1
            await calls.step("kept", open=pb.Open(model=MODEL, on_disconnect=KEEP), feed=fed(5, position=0))

            async def has_expired() -> bool:
                try:
                    await info(calls, "short")
                except grpc.aio.AioRpcError:
                    return True
                return False

            await until(has_expired)
            expired = await calls.refused("short")
            assert expired.metadata["close_reason"] == "expired"
            assert "expired: it was not resumed or used in time" in expired.message
            kept = await calls.step("kept", feed=fed(6, position=1), close=True)
            assert (kept.position, kept.opened.restored_from) == (2, pb.RESTORED_FROM_STORE)
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.mark.parametrize("durability", [pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT])
async def test_a_stored_session_survives_its_server(
    tiny_repository: Path, tmp_path: Path, durability: pb.Durability.ValueType
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 0.05}
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls:
            opening = pb.Open(model=MODEL, durability=durability)
            answer = await calls.step("stored", open=opening, feed=fed(5, 6, position=0, mark=True))
            if durability == pb.DURABILITY_STRICT:
                assert answer.checkpoint_position == 2

            async def is_stored() -> bool:
                return (await calls.step("stored")).checkpoint_position == 2

            await until(is_stored)
        service.kill()
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls:
            again = await calls.step("stored", open=opening, feed=fed(5, 6, position=0, mark=True))
            unmarked = await calls.refused("stored", feed=fed(5, 6, position=0))
            assert unmarked.reason == "POSITION_MISMATCH"
            assert (again.fed.replayed, again.opened.restored_from) == (True, pb.RESTORED_FROM_STORE)
            last = await calls.step("stored", feed=fed(7, position=2), close=True)
            assert list(last.fed.outputs[0].logits) == expected(tiny_repository, 5, 6, 7)
            assert (await calls.refused("stored")).metadata["position"] == "3"


@pytest.fixture
def replicas(tiny_repository: Path, tmp_path: Path) -> Iterator[list[LocalService]]:
    """Yields two servers with one store."""
    key = tmp_path / "snapshot.key"
    key.write_bytes(os.urandom(32))
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path))
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 0.6}
        yield [stack.enter_context(local_service(tiny_repository, flags)) for _ in range(2)]


async def test_calls_find_a_session_at_another_server_unless_a_stream_has_it_there(
    replicas: list[LocalService], tiny_repository: Path
) -> None:
    here, there = replicas
    held = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
    async with stubs(here.target) as at_first, stubs(there.target) as at_second:
        async with wire(here.target) as stream:
            await stream.ask("far", open=pb.Open(model=MODEL, on_disconnect=held, durability=pb.DURABILITY_STRICT))
            await stream.ask("far", feed=fed(5, position=0))
            error = await at_second.refused("far", feed=fed(6, position=1))
            assert (error.code, error.reason) == (Code.FAILED_PRECONDITION.value[0], "SESSION_NOT_OPEN")
            assert "belongs to another server, and there it has a stream" in error.message
            assert (await stream.ask("far", feed=fed(6, position=1))).position == 2
        tokens = [5, 6]
        for at, calls in enumerate([at_second, at_first, at_first, at_second], start=2):
            answer = await calls.step("far", feed=fed(7, position=at))
            tokens.append(7)
            assert list(answer.fed.outputs[0].logits) == expected(tiny_repository, *tokens)
            is_moved = at != 4
            assert answer.opened.restored_from == (pb.RESTORED_FROM_STORE if is_moved else pb.RESTORED_FROM_MEMORY)
        again = await at_first.step("far", feed=fed(7, position=5))
        assert (again.fed.replayed, again.position) == (True, 6)
        both = await asyncio.gather(*(calls.step("far", feed=fed(8, position=6)) for calls in (at_first, at_second)))
        assert sorted(one.fed.replayed for one in both) == [False, True]
        assert {one.position for one in both} == {7}
        await at_second.step("far", close=True)
        assert (await at_first.refused("far", close=True)).metadata["close_reason"] == "client"


async def test_json_goes_through_the_front_and_survives_a_replica(
    replicas: list[LocalService], tiny_repository: Path, tmp_path: Path
) -> None:
    program("envoy")
    ports = [int(replica.target.rpartition(":")[2]) for replica in replicas]
    with local_envoy(ports, tmp_path) as front:

        def ask(session_id: str, **body: Any) -> Any:
            data = json.dumps({"sessionId": session_id, **body}).encode()
            headers = {**web.JSON, "x-session-id": session_id}
            answer = web.ask(front.target, "/carousel.v1.Inference/Step", data, headers)
            assert answer.status == 200, answer.body
            return json.loads(answer.body)

        names = [f"web-{number}" for number in range(8)]
        opening = {"model": MODEL, "durability": "DURABILITY_STRICT"}
        logits = {"kind": "OUTPUT_KIND_LOGITS"}
        for name in names:
            assert ask(name, open=opening, feed={"tokenIds": [5], "position": 0})["position"] == "1"
        found = [ask(name)["opened"]["restoredFrom"] for name in names]
        assert found == ["RESTORED_FROM_MEMORY"] * 8, "all calls of a session go to one replica"
        replicas[0].kill()
        for name in names:
            last = ask(name, feed={"tokenIds": [6], "position": 1, "outputs": logits}, close=True)
            assert last["position"] == "2"
            reported = [struct.unpack("f", struct.pack("f", one))[0] for one in last["fed"]["outputs"][0]["logits"]]
            assert reported == expected(tiny_repository, 5, 6)


class Refusal(NamedTuple):
    """A call and its expected error."""

    request: dict[str, Any]
    code: grpc.StatusCode
    reason: str
    message: str
    field: str


IDS = "must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
BAD = {
    "nothing": Refusal(
        {},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "session_id is missing: set session_id to resume a session, or open to open one",
        "session_id",
    ),
    "feed of nobody": Refusal(
        {"feed": fed(5)}, Code.INVALID_ARGUMENT, "INVALID_FIELD", "session_id is missing", "session_id"
    ),
    "bad id": Refusal(
        {"session_id": "a b"}, Code.INVALID_ARGUMENT, "INVALID_FIELD", f"session_id = 'a b' {IDS}", "session_id"
    ),
    "long id": Refusal(
        {"session_id": "x" * 5000, "open": pb.Open(model=MODEL)},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        f"session_id = '{'x' * 140}...' {IDS}",
        "session_id",
    ),
    "unknown session": Refusal(
        {"session_id": "ghost", "feed": fed(5)},
        Code.NOT_FOUND,
        "SESSION_NOT_FOUND",
        "session_id = 'ghost' is unknown",
        "session_id",
    ),
    "resume": Refusal(
        {"session_id": "there", "open": pb.Open(resume=pb.Resume())},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "open.resume must not be set: leave out open to resume the session",
        "open.resume",
    ),
    "unknown model": Refusal(
        {"session_id": "new", "open": pb.Open(model="nope")},
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "open.model = 'nope' does not exist",
        "open.model",
    ),
    "another model": Refusal(
        {"session_id": "there", "open": pb.Open(model="tiny-lm", version=1)},
        Code.ALREADY_EXISTS,
        "SESSION_ID_IN_USE",
        "session_id = 'there' is in use by a session of tiny-endless version 1 (fp32), but open asks for 'tiny-lm'"
        " version 1",
        "session_id",
    ),
    "no model": Refusal(
        {"session_id": "there", "open": pb.Open()},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "open.model = '' ",
        "open.model",
    ),
    "no model's name": Refusal(
        {"session_id": "there", "open": pb.Open(model="a/b"), "feed": fed(5)},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "open.model = 'a/b' ",
        "open.model",
    ),
    "unknown durability": Refusal(
        {"session_id": "there", "open": pb.Open(model=MODEL, durability=9)},  # type: ignore[arg-type]
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "open.durability = 9 is unknown",
        "open.durability",
    ),
    "another version": Refusal(
        {"session_id": "there", "open": pb.Open(model=MODEL, version=2)},
        Code.ALREADY_EXISTS,
        "SESSION_ID_IN_USE",
        "open asks for 'tiny-endless' version 2 (any)",
        "session_id",
    ),
    "unknown policy": Refusal(
        {"session_id": "new", "open": pb.Open(model=MODEL, on_disconnect=pb.DisconnectPolicy(action=9))},  # type: ignore[arg-type]
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "open.on_disconnect.action = 9 is unknown: it must be one of DISCONNECT_ACTION_FREE",
        "open.on_disconnect.action",
    ),
    "no tokens": Refusal(
        {"session_id": "there", "feed": pb.Feed(position=0)},
        Code.INVALID_ARGUMENT,
        "EMPTY_SEQUENCE",
        "feed is empty",
        "feed",
    ),
    "token out of vocabulary": Refusal(
        {"session_id": "there", "feed": pb.Feed(token_ids=[5, 999999])},
        Code.INVALID_ARGUMENT,
        "TOKEN_OUT_OF_VOCABULARY",
        "feed.token_ids[1] = 999999 is outside the vocabulary of tiny-endless",
        "feed.token_ids[1]",
    ),
    "features": Refusal(
        {"session_id": "there", "feed": pb.Feed(features=pb.Tensor(shape=[1], data=bytes(4)))},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "feed.features does not fit tiny-endless: it reads tokens",
        "feed.features",
    ),
    "too many candidates": Refusal(
        {
            "session_id": "there",
            "feed": pb.Feed(token_ids=[5], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=10**6)),
        },
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "feed.outputs.top_k = 1000000",
        "feed.outputs.top_k",
    ),
}


@pytest.fixture(scope="module")
def there(tiny_service: LocalService) -> None:
    """Opens the session `there`, which the server holds."""

    async def open_it() -> None:
        async with stubs(tiny_service.target) as calls:
            await calls.step("there", open=pb.Open(model=MODEL))

    asyncio.run(open_it())


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_with_a_message_and_changes_nothing(tiny_service: LocalService, name: str) -> None:
    request, code, reason, message, field = BAD[name]
    async with stubs(tiny_service.target) as calls:
        error = await calls.refused(**request)
        assert (error.code, error.reason, error.field) == (code.value[0], reason, field)
        assert message in error.message
        assert len(error.message) < 400
        assert (await calls.step("there")).position == 0
        assert (await calls.refused("new")).reason == "SESSION_NOT_FOUND"


async def test_a_call_that_is_refused_opens_nothing(tiny_service: LocalService) -> None:
    async with stubs(tiny_service.target) as calls:
        for wrong in (fed(5, position=3), fed(10**6)):
            await calls.refused("never", open=pb.Open(model=MODEL), feed=wrong)
            assert (await calls.refused("never")).reason == "SESSION_NOT_FOUND"
        right = await calls.step("never", open=pb.Open(model=MODEL), feed=fed(5, position=0), close=True)
        assert (right.position, right.opened.restored_from) == (1, pb.RESTORED_FROM_UNSPECIFIED)


def test_a_client_needs_only_json(tiny_service: LocalService, request: pytest.FixtureRequest) -> None:
    """Sends the requests that curl would send."""
    if request.config.getoption("--wire") == "grpcio":
        pytest.skip("gRPC's own wire speaks JSON behind an Envoy alone")
    path = "/carousel.v1.Inference/Step"

    def ask(**body: Any) -> Any:
        answer = web.ask(tiny_service.target, path, json.dumps(body).encode(), web.JSON)
        return answer.status, json.loads(answer.body)

    status, first = ask(sessionId="curl", open={"model": MODEL}, feed={"tokens": ["t5"], "position": 0})
    assert (status, first["sessionId"], first["position"]) == (200, "curl", "1")
    assert first["fed"]["outputs"][0]["tokens"][0]["text"]
    status, response = ask(sessionId="curl", feed={"tokens": ["t5"], "position": 3})
    assert (status, response["code"]) == (412, "failed_precondition")
    assert "feed.position = 3, but the session is at position 1" in response["message"]
    status, last = ask(sessionId="curl", feed={"tokens": ["t6"], "position": 1}, close=True)
    assert (last["position"], last["closed"]) == ("2", {"reason": "CLOSE_REASON_CLIENT"})


async def test_an_answer_that_would_be_too_large_leaves_no_session_that_the_call_opened(
    tiny_service: LocalService,
) -> None:
    async with AsyncClient(tiny_service.target) as client:
        with pytest.raises(ResourceExhaustedError, match=r"feed\.outputs requests a response of up to"):
            await client.step("large", [5] * 60_000, model="tiny-lm", every_position=True, logits=True)
        with pytest.raises(NotFoundError):
            await client.step("large")

"""Watching a session: its events are delivered in order and once, and clients that feed it are not affected."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from carousel import (
    AsyncClient,
    Client,
    CloseReason,
    InvalidArgumentError,
    NotFoundError,
    WatchBegun,
    WatchClosed,
    WatchFed,
    WatchGenerated,
)
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from examples.local_envoy import local_envoy
from examples.local_service import LocalService
from tests.end_to_end.test_security import ADMIN, ALICE, BOB, write_tokens
from tests.end_to_end.test_step import KEEP, LOGITS, MODEL, Stubs, expected, fed, stubs
from tests.end_to_end.wire import wire
from tests.services import local_service, program, redis_server

HOLD = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
DROPPED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
"""The possible statuses of a dropped watcher's call. CANCELLED means that the call was reset."""
TOP = pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=3)


class Watching:
    """One `Inference.Watch` call."""

    def __init__(self, calls: Stubs, session_id: str) -> None:
        self.call = calls.inference.Watch(pb.WatchRequest(session_id=session_id))

    async def next(self) -> pb.WatchResponse:
        """Returns the next event."""
        response = await asyncio.wait_for(self.call.read(), 20.0)
        assert response is not grpc.aio.EOF, f"the call ended: {await self.call.code()}, {await self.call.details()}"
        assert isinstance(response, pb.WatchResponse)
        return response

    async def to_the_end(self) -> None:
        """Reads all events, up to the error that ends the call."""
        while await asyncio.wait_for(self.call.read(), 20.0) is not grpc.aio.EOF:
            pass

    async def received(self, kind: str) -> tuple[int, Any]:
        """Returns the position and the next event, which must be of this kind."""
        response = await self.next()
        assert response.WhichOneof("event") == kind, response
        return response.position, getattr(response, kind)

    async def change(self) -> tuple[int, str]:
        """Returns the position and the name of the next event, which must be a change."""
        position, changed = await self.received("changed")
        return position, pb.SessionChange.Name(changed.change).removeprefix("SESSION_CHANGE_")

    async def closed(self) -> tuple[int, str]:
        """Returns the position and the reason of the next event, which must be a close. The call must then end with
        OK."""
        position, closed = await self.received("closed")
        assert await asyncio.wait_for(self.call.read(), 20.0) is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK
        return position, pb.CloseReason.Name(closed.reason).removeprefix("CLOSE_REASON_")


@asynccontextmanager
async def watching(calls: Stubs, session_id: str, position: int = 0) -> AsyncIterator[Watching]:
    """Yields a watch that has begun at a position."""
    watch = Watching(calls, session_id)
    assert (await watch.received("watching"))[0] == position
    try:
        yield watch
    finally:
        watch.call.cancel()


def ids(consumed: pb.Consumed) -> list[int]:
    return [token.id for token in consumed.tokens]


async def test_a_watcher_gets_a_sessions_events_in_order_from_every_client(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    async with stubs(tiny_service.target) as calls:
        async with wire(tiny_service.target) as stream:
            await stream.ask("seen", open=pb.Open(model=MODEL, on_disconnect=HOLD))
            watch = Watching(calls, "seen")
            begun = await watch.next()
            assert (begun.session_id, begun.position) == ("seen", 0)
            what = pb.Opened(model=MODEL, version=1, variant="fp32", durability=pb.DURABILITY_CHECKPOINT)
            assert begun.watching == what

            answer = await stream.ask("seen", feed=fed(5, 6, position=0, mark=True))
            position, found = await watch.received("fed")
            assert (position, ids(found), [token.text for token in found.tokens]) == (2, [5, 6], ["t5", "t6"])
            assert found.fed == answer.fed
            assert list(found.fed.outputs[0].logits) == expected(tiny_repository, 5, 6)
            again = await stream.ask("seen", feed=fed(5, 6, position=0, mark=True))
            assert again.fed.replayed, "which is reported no second time"
            await stream.ask("seen", score=pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[5]))]))

            await stream.send("seen", generate=pb.Generate(decoding=pb.Decoding(max_tokens=5)))
            tokens, _ = await stream.generated()
            made: list[str] = []
            while len(made) < 5:
                position, generated = await watch.received("generated")
                made += [token.text for token in generated.tokens]
                assert position == 2 + len(made)
            assert (made, generated.finish_reason) == (tokens, pb.FINISH_REASON_MAX_TOKENS)

            await stream.send("seen", generate=pb.Generate(decoding=beams(3)))
            searched = await stream.read()
            position, generated = await watch.received("generated")
            assert (position, generated) == (searched.position, searched.generated)

            await calls.sessions.Rewind(sessions_pb2.SessionsRewindRequest(session_id="seen", position=2))
            assert await watch.change() == (2, "SET_BACK")
            await stream.ask("seen", cancel=pb.Cancel())  # cancels nothing, so there is no event
        assert await watch.change() == (2, "DETACHED")

        stepped = await calls.step("seen", feed=fed(7, position=2))
        position, found = await watch.received("fed")
        assert (position, ids(found), found.fed) == (3, [7], stepped.fed)
        await calls.step("seen", feed=fed(7, position=2))  # a retry, so there is no event
        async with wire(tiny_service.target) as stream:
            await stream.ask("seen", open=pb.Open(resume=pb.Resume()))
            assert await watch.change() == (3, "ATTACHED")
            await stream.ask("seen", feed=pb.Feed(token_ids=[8], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)))
            position, found = await watch.received("fed")
            assert (position, ids(found), found.HasField("fed"), len(found.fed.outputs)) == (4, [8], True, 0)
            await stream.ask("seen", close=pb.Close())
        assert await watch.closed() == (4, "CLIENT")
        gone = Watching(calls, "seen")
        with pytest.raises(grpc.aio.AioRpcError, match="is gone: it was closed by a client at position 4") as failed:
            await gone.call.read()
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def beams(max_tokens: int) -> pb.Decoding:
    search = pb.BeamSearch(beam_size=2, num_best=2)
    return pb.Decoding(max_tokens=max_tokens, beam_search=search)


@pytest.mark.parametrize("outputs", [TOP, LOGITS, pb.OutputSpec()])
async def test_a_watcher_gets_only_its_sessions_part_of_a_step_batch(
    tiny_service: LocalService, outputs: pb.OutputSpec
) -> None:
    async with stubs(tiny_service.target) as calls, wire(tiny_service.target) as stream:
        names = ["left", "right", "wrong"]
        handles = [(await stream.ask(name, open=pb.Open(model=MODEL))).opened.handle for name in names]
        async with watching(calls, "right") as right, watching(calls, "wrong") as wrong:
            batch = pb.StepBatch(
                handles=handles, token_ids=[5, 6, 7, 8], counts=[1, 2, 1], positions=[0, 0, 9], outputs=outputs
            )
            answer = (await stream.ask(step_batch=batch)).batch_stepped
            assert list(answer.positions) == [1, 2, 0]
            position, found = await right.received("fed")
            assert (position, ids(found)) == (2, [6, 7])
            output = found.fed.outputs[0]
            width = len(answer.token_ids) // 3
            assert [token.id for token in output.tokens] == list(answer.token_ids[width : 2 * width])
            if outputs.kind == pb.OUTPUT_KIND_TOP_K:
                scores = [token.log_probability for token in output.tokens]
                assert scores == list(answer.log_probabilities[width : 2 * width])
            size = len(answer.logits) // 3
            assert list(output.logits) == list(answer.logits[size : 2 * size])
            await stream.ask("wrong", feed=fed(5, position=0))
            position, found = await wrong.received("fed")
            assert (position, ids(found)) == (1, [5]), "the batch has moved it nowhere"


async def test_a_watcher_gets_a_long_feed_in_parts_and_the_consumed_part_of_a_cancelled_feed(
    tiny_service: LocalService,
) -> None:
    tokens = [5, 6, 7] * 4000
    async with stubs(tiny_service.target) as calls, wire(tiny_service.target) as stream:
        await stream.ask("long", open=pb.Open(model=MODEL))
        async with watching(calls, "long") as watch:
            answer = await stream.ask("long", feed=fed(*tokens, position=0))
            found: list[int] = []
            reported = pb.Consumed()
            while not reported.HasField("fed"):
                position, reported = await watch.received("fed")
                found += ids(reported)
                assert (len(reported.tokens), position) == (1000, len(found))
            assert (found, reported.fed) == (tokens, answer.fed)
            await stream.send("long", feed=fed(*tokens, *tokens))
            await stream.send("long", cancel=pb.Cancel())
            failed = await stream.read()
            assert failed.error.code == grpc.StatusCode.CANCELLED.value[0]
            found, last = [], len(tokens)
            while True:
                response = await watch.next()
                last = response.position
                if response.HasField("changed"):
                    break
                found += ids(response.fed)
                assert not response.fed.fed.outputs
            assert found == [*tokens, *tokens][: failed.position - len(tokens)]
            assert last == failed.position


def test_a_session_is_watched_by_those_who_may_see_it(tiny_repository: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.toml")
    with local_service(tiny_repository, {"tokens-file": tmp_path / "tokens.toml"}) as service:
        alice, bob, admin = (Client(service.target, token=token) for token in (ALICE, BOB, ADMIN))
        alice.step("hers", [5], model=MODEL)
        for name in ("hers", "alice/hers"):
            with pytest.raises((NotFoundError, InvalidArgumentError)):
                next(bob.watch(name))
        assert next(alice.watch("hers")).session_id == "hers"
        with admin.watch("alice/hers") as watch:
            assert next(watch).session_id == "alice/hers"
            alice.step("hers", close=True)
            assert next(watch) == WatchClosed("alice/hers", 1, CloseReason.CLIENT)
        for client, name in ((alice, "hers"), (admin, "alice/hers")):
            with pytest.raises(NotFoundError, match=f"session_id = '{name}' is gone") as gone:
                next(client.watch(name))
            assert gone.value.metadata["session_id"] == name
        with pytest.raises(NotFoundError, match="session_id = 'alice/none' is unknown: it was never opened here"):
            admin.sessions.close("alice/none")


async def test_events_of_a_strict_session_are_sent_after_they_are_stored(tiny_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "snapshot.key"
    key.write_bytes(os.urandom(32))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 5}
        with local_service(tiny_repository, flags) as service:
            async with stubs(service.target) as calls:
                strict = pb.Open(model=MODEL, durability=pb.DURABILITY_STRICT)
                await calls.step("strict", open=strict, feed=fed(5, position=0))
                async with watching(calls, "strict", 1) as watch:
                    redis.stop()
                    error = await calls.refused("strict", feed=fed(6, position=1))
                    assert error.reason == "STORE_UNAVAILABLE"
                    late = Watching(calls, "strict")
                    first = [asyncio.create_task(one.call.read()) for one in (watch, late)]
                    done, _ = await asyncio.wait(first, timeout=1.0)
                    assert not done, "the store does not have it"
                    redis.start()
                    again = await calls.step("strict", feed=fed(6, position=1))
                    assert (again.position, again.fed.replayed) == (2, True)
                    found, begun = [await asyncio.wait_for(one, 20.0) for one in first]
                    assert (found.position, ids(found.fed), found.fed.fed.outputs) == (2, [6], again.fed.outputs)
                    assert (begun.position, begun.HasField("watching")) == (2, True)
                    await calls.step("strict", feed=fed(7, position=2))
                    for one in (watch, late):
                        position, consumed = await one.received("fed")
                        assert (position, ids(consumed)) == (3, [7])
                    redis.stop()
                    await calls.refused("strict", feed=fed(8, position=3))
                    assert (await calls.refused("strict", close=True)).reason == "STORE_UNAVAILABLE"
                    assert await watch.closed() == (3, "CLIENT"), "what is not stored is never reported"
                    redis.start()


async def test_a_watcher_that_does_not_read_is_dropped_and_feeds_are_not_delayed(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    tokens = [5, 6, 7] * 1000
    every = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
    async with stubs(tiny_service.target) as calls, wire(tiny_service.target) as stream:
        await stream.ask("fast", open=pb.Open(model=MODEL))
        slow = Watching(calls, "fast")
        await slow.received("watching")
        async with watching(calls, "fast") as quick:
            for number in range(60):
                feed = pb.Feed(token_ids=tokens, position=number * len(tokens), outputs=every)
                answer = await stream.ask("fast", feed=feed)
                found = pb.Consumed()
                while not found.HasField("fed"):
                    position, found = await quick.received("fed")
                assert (position, found.fed) == (answer.position, answer.fed)
                assert len(answer.fed.outputs) == len(tokens)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await slow.to_the_end()
            assert failed.value.code() in DROPPED
            if failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                assert "events of session 'fast' wait to be read" in str(failed.value.details())
                assert "Watch the session again" in str(failed.value.details())
            async with watching(calls, "fast", 60 * len(tokens)) as again:
                await stream.ask("fast", feed=fed(8))
                assert ids((await again.received("fed"))[1]) == [8]
            assert ids((await quick.received("fed"))[1]) == [8]


async def test_calls_of_watchers_that_never_read_end(tiny_repository: Path) -> None:
    tokens = [5, 6, 7] * 1000
    every = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
    with local_service(tiny_repository) as service:
        async with stubs(service.target) as calls, wire(service.target) as stream:
            await stream.ask("s", open=pb.Open(model=MODEL))
            watches = [Watching(calls, "s") for _ in range(3)]
            for watch in watches:
                await watch.received("watching")

            def metric(name: str) -> float:
                text = urllib.request.urlopen(service.metrics_url).read().decode()
                return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

            active = 'carousel_calls_active{method="/carousel.v1.Inference/Watch"}'
            async with asyncio.timeout(60):
                while metric(active):
                    await stream.ask("s", feed=pb.Feed(token_ids=tokens, outputs=every))
            dropped = f'carousel_errors_total{{code="RESOURCE_EXHAUSTED",model="{MODEL}",reason="WATCHER_DROPPED"}}'
            assert metric(dropped) == 3
            position = (await stream.ask("s", feed=fed(5))).position
            async with watching(calls, "s", position):
                for watch in watches:
                    with pytest.raises(grpc.aio.AioRpcError) as failed:
                        await watch.to_the_end()
                    assert failed.value.code() in DROPPED
        assert service.stop() == 0
        assert not [line for line in service.log if line["level"] in {"error", "warning"}]


async def test_watchers_keep_no_session_and_no_server_alive(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"idle-timeout-s": 0.4}) as service:
        async with stubs(service.target) as calls, wire(service.target) as stream:
            await stream.ask("idle", open=pb.Open(model=MODEL))
            short = pb.DisconnectPolicy()
            short.duration.FromMilliseconds(300)
            await calls.step("held", open=pb.Open(model=MODEL, on_disconnect=short))
            async with watching(calls, "idle") as idle, watching(calls, "held") as held:
                assert await held.closed() == (0, "EXPIRED")
                assert await idle.closed() == (0, "IDLE")
            await calls.step("kept", open=pb.Open(model=MODEL, on_disconnect=KEEP))
            async with watching(calls, "kept") as kept:
                assert await kept.closed() == (0, "IDLE")
            for call in (
                calls.inference.Watch(pb.WatchRequest(session_id="kept")).read(),
                calls.sessions.Get(sessions_pb2.SessionsGetRequest(session_id="kept")),
            ):
                with pytest.raises(
                    grpc.aio.AioRpcError, match="not in this server's memory: it is in the store"
                ) as apart:
                    await call
                assert apart.value.code() is grpc.StatusCode.NOT_FOUND
            await calls.step("stored", open=pb.Open(model=MODEL), feed=fed(5, position=0))
            async with watching(calls, "stored", 1) as watch:
                service.stop()
                assert await watch.closed() == (1, "MOVED")


async def test_no_more_than_sixteen_watch_a_session(tiny_service: LocalService) -> None:
    async with stubs(tiny_service.target) as calls:
        await calls.step("famous", open=pb.Open(model=MODEL))
        watches = [Watching(calls, "famous") for _ in range(16)]
        for watch in watches:
            await watch.received("watching")
        with pytest.raises(grpc.aio.AioRpcError, match="16 calls already watch session 'famous'") as failed:
            await Watching(calls, "famous").call.read()
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches.pop().call.cancel()
        while len(watches) < 16:
            another = Watching(calls, "famous")
            with suppress(grpc.aio.AioRpcError):  # refused until the server has noticed that the first watcher left
                await another.received("watching")
                watches.append(another)
        await calls.step("famous", close=True)
        for watch in watches:
            assert await watch.closed() == (0, "CLIENT")


async def test_watchers_are_notified_when_another_server_takes_the_session(
    tiny_repository: Path, tmp_path: Path
) -> None:
    key = tmp_path / "snapshot.key"
    key.write_bytes(os.urandom(32))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 0.6}
        with local_service(tiny_repository, flags) as here, local_service(tiny_repository, flags) as there:
            async with stubs(here.target) as calls, stubs(there.target) as others:
                strict = pb.Open(model=MODEL, durability=pb.DURABILITY_STRICT)
                await calls.step("far", open=strict, feed=fed(5, position=0))
                with pytest.raises(grpc.aio.AioRpcError, match="is not in this server's memory"):
                    await Watching(others, "far").call.read()
                async with watching(calls, "far", 1) as watch:
                    await others.step("far", feed=fed(6, position=1))
                    assert await watch.closed() == (1, "MOVED")
                async with watching(others, "far", 2):
                    pass
                with pytest.raises(grpc.aio.AioRpcError, match="has moved to another server"):
                    await Watching(calls, "far").call.read()


async def test_both_clients_watch(shipped_service: LocalService) -> None:
    with Client(shipped_service.target, timeout=20.0) as client:
        step = client.step("both", ["K"], model="g2p-en", source="carousel", top_k=2, trace=True)
        with client.watch("both") as watch:
            begun = next(watch)
            assert isinstance(begun, WatchBegun)
            assert (begun.position, begun.model, begun.durability) == (1, "g2p-en", "checkpoint")
            async with AsyncClient(shipped_service.target) as other, other.watch("both") as second:
                assert await anext(second) == begun
                fed_step = client.step("both", ["EH"], position=1, top_k=2, trace=True)
                with client.resume("both") as session:
                    made = [token.text for token in session.generate(max_tokens=2)]
                events = list(watch)
                assert [event async for event in second] == events
        first = events[0]
        assert isinstance(first, WatchFed)
        assert first.step is not None
        assert (first.position, [token.text for token in first.tokens]) == (2, ["EH"])
        assert (first.step.outputs, first.step.trace) == (fed_step.outputs, fed_step.trace)
        assert step.trace.keys() == first.step.trace.keys()
        found = [token.text for event in events if isinstance(event, WatchGenerated) for token in event.tokens]
        assert found == made
        assert events[-1] == WatchClosed("both", 4, CloseReason.CLIENT)


async def test_events_of_vectors_contain_vectors(shipped_service: LocalService) -> None:
    with (
        Client(shipped_service.target) as client,
        client.session("co2-forecast", [[370.0], [371.0]]) as session,
        client.watch(session.id, timeout=20.0) as watch,
    ):
        next(watch)
        step = session.feed(features=[[372.0], [373.5]])
        event = next(watch)
        assert isinstance(event, WatchFed)
        assert (event.features, event.tokens, event.step) == (((372.0,), (373.5,)), (), step)
        values = session.forecast(2)
        made: list[tuple[float, ...]] = []
        while len(made) < 2:
            event = next(watch)
            assert isinstance(event, WatchGenerated)
            made += event.values
        assert made == values


def test_a_web_page_gets_events_as_json(
    tiny_service: LocalService, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Uses Connect's protocol. If the wire is `grpcio`, the request goes through an Envoy."""
    with ExitStack() as stack:
        target = tiny_service.target
        if request.config.getoption("--wire") == "grpcio":
            program("envoy")
            target = stack.enter_context(local_envoy([int(target.rpartition(":")[2])], tmp_path)).target
        client = stack.enter_context(Client(tiny_service.target))
        client.step("web", [5], model=MODEL)
        body = json.dumps({"sessionId": "web"}).encode()
        asked = urllib.request.Request(
            f"http://{target}/carousel.v1.Inference/Watch",
            b"\0" + len(body).to_bytes(4, "big") + body,
            {"content-type": "application/connect+json", "connect-protocol-version": "1", "x-session-id": "web"},
        )
        answer = stack.enter_context(urllib.request.urlopen(asked, timeout=20))

        def event() -> tuple[int, Any]:
            head = answer.read(5)
            return head[0], json.loads(answer.read(int.from_bytes(head[1:], "big")))

        flags, begun = event()
        assert (flags, begun["position"], begun["watching"]["model"]) == (0, "1", MODEL)
        client.step("web", [6], position=1, close=True)
        flags, found = event()
        assert (flags, found["position"], found["fed"]["tokens"]) == (0, "2", [{"id": 6, "text": "t6"}])
        assert event()[1]["closed"] == {"reason": "CLOSE_REASON_CLIENT"}
        flags, last = event()
        assert (flags, list(last), list(last["metadata"])) == (2, ["metadata"], ["x-request-id"])

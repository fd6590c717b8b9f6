"""Sessions continue after their stream has ended: held, resumed, stored, or restored by another server."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.end_to_end.test_sessions import gone
from tests.end_to_end.wire import Wire, wire
from tests.reference import ReferenceSession
from tests.services import local_service
from tests.waiting import until

LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)


def held(model: str = "tiny-endless", **more: object) -> pb.Open:
    policy = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
    return pb.Open(model=model, on_disconnect=policy, **more)  # type: ignore[arg-type]


async def go_on(stream: Wire, session_id: str) -> pb.StreamResponse:
    return await stream.ask(session_id, open=pb.Open(resume=pb.Resume()))


async def test_a_held_session_resumes_at_its_position(tiny_service: LocalService, tiny_repository: Path) -> None:
    async with wire(tiny_service.target) as stream:
        await stream.ask("held-1", open=held())
        await stream.ask("held-1", feed=pb.Feed(token_ids=[5, 6], position=0))
    async with wire(tiny_service.target) as stream:
        opened = await go_on(stream, "held-1")
        assert opened.position == 2
        assert opened.opened.restored_from == pb.RESTORED_FROM_MEMORY
        assert opened.opened.model == "tiny-endless"
        again = await stream.ask("held-1", feed=pb.Feed(token_ids=[5, 6], position=0))
        assert again.fed.replayed
        fed = await stream.ask("held-1", feed=pb.Feed(token_ids=[7], position=2, outputs=LOGITS))
        reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
        for token in (5, 6):
            reference.step(token)
        assert list(fed.fed.outputs[0].logits) == reference.step(7).tolist()
        await stream.ask("held-1", close=pb.Close())


async def test_a_resumed_generation_continues_from_the_received_position(
    tiny_service: LocalService, tiny_repository: Path
) -> None:
    expected = ReferenceSession(tiny_repository / "tiny-endless" / "1").generate(1000)
    decoding = pb.Decoding(max_tokens=1000)
    async with wire(tiny_service.target) as stream:
        await stream.ask("gen-1", open=held())
        await stream.send("gen-1", generate=pb.Generate(position=0, decoding=decoding))
        received = [token.id for token in (await stream.read()).generated.tokens]
    async with wire(tiny_service.target) as stream:
        await go_on(stream, "gen-1")
        generate = pb.Generate(position=0, decoding=decoding, received_position=len(received))
        await stream.send("gen-1", generate=generate)
        while True:
            response = await stream.read()
            assert response.HasField("generated"), response
            received += [token.id for token in response.generated.tokens]
            if response.generated.finish_reason:
                break
        assert received == expected
        assert response.position == 1000
        await stream.ask("gen-1", close=pb.Close())


async def test_an_unattended_generation_continues_without_a_stream(tiny_service: LocalService) -> None:
    decoding = pb.Decoding(max_tokens=3000)
    async with wire(tiny_service.target) as stream:
        await stream.ask("alone", open=held(unattended=True))
        await stream.send("alone", generate=pb.Generate(position=0, decoding=decoding))
        await stream.read()
    async with grpc.aio.insecure_channel(tiny_service.target) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)

        async def idle() -> sessions_pb2.SessionInfo | None:
            found = (await stub.Get(sessions_pb2.SessionsGetRequest(session_id="alone"))).session
            return found if found.state == sessions_pb2.SESSION_STATE_IDLE else None

        info = await until(idle)
        assert (info.position, info.attached) == (3000, False)
    async with wire(tiny_service.target) as stream:
        await go_on(stream, "alone")
        await stream.send("alone", generate=pb.Generate(position=0, decoding=decoding, received_position=2990))
        response = await stream.read()
        assert len(response.generated.tokens) == 10
        assert response.generated.finish_reason == pb.FINISH_REASON_MAX_TOKENS
        await stream.ask("alone", close=pb.Close())


async def test_another_stream_takes_over_a_session_and_the_first_stream_is_notified(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as first, wire(tiny_service.target) as second:
        await first.ask("taken", open=held())
        await go_on(second, "taken")
        notice = await first.read()
        assert (notice.session_id, notice.closed.reason) == ("taken", pb.CLOSE_REASON_TAKEN)
        refused = await first.ask("taken", feed=pb.Feed(token_ids=[5]))
        assert refused.error.reason == "SESSION_NOT_OPEN"
        await second.ask("taken", close=pb.Close())


async def test_a_session_that_no_client_resumes_expires(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"idle-timeout-s": 0.4}) as service:
        policy = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
        policy.duration.FromMilliseconds(100)
        async with wire(service.target) as stream:
            await stream.ask("short", open=pb.Open(model="tiny-endless", on_disconnect=policy))
        await gone(service, "short")
        async with wire(service.target) as stream:
            refused = await go_on(stream, "short")
        assert refused.error.reason == "SESSION_NOT_FOUND"
        assert refused.error.metadata["close_reason"] == "expired"
        assert "expired: it was not resumed or used in time" in refused.error.message


@pytest.mark.parametrize("durability", [pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT])
async def test_a_stored_session_survives_the_death_of_its_server(
    tiny_repository: Path, tmp_path: Path, durability: pb.Durability.ValueType
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 0.05}
    expected = ReferenceSession(tiny_repository / "tiny-endless" / "1")
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("safe", open=held(durability=durability))
            position = 0
            stored = None
            while stored is None or stored < 3:
                fed = await stream.ask("safe", feed=pb.Feed(token_ids=[5 + position % 3], position=position))
                assert fed.HasField("fed"), fed
                expected.step(5 + position % 3)
                position += 1
                stored = fed.checkpoint_position if fed.HasField("checkpoint_position") else stored
                if durability == pb.DURABILITY_STRICT:
                    assert stored == position
            service.process.kill()
            service.process.wait()
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            opened = await go_on(stream, "safe")
            assert opened.opened.restored_from == pb.RESTORED_FROM_STORE
            assert stored <= opened.position <= position
            assert opened.checkpoint_position == opened.position
            for at in range(opened.position, position):
                await stream.ask("safe", feed=pb.Feed(token_ids=[5 + at % 3], position=at))
            fed = await stream.ask("safe", feed=pb.Feed(token_ids=[9], position=position, outputs=LOGITS))
            assert list(fed.fed.outputs[0].logits) == expected.step(9).tolist()
            closed = await stream.ask("safe", close=pb.Close())
            assert closed.closed.reason == pb.CLOSE_REASON_CLIENT
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            gone = await go_on(stream, "safe")
            assert gone.error.metadata["close_reason"] == "client"


async def test_a_generation_resumes_with_the_same_tokens_after_its_server_was_killed(
    tiny_repository: Path, tmp_path: Path
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 0.05}
    expected = ReferenceSession(tiny_repository / "tiny-endless" / "1").generate(20_000)
    decoding = pb.Decoding(max_tokens=20_000)
    received: list[int] = []
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("dying", open=held())
            await stream.send("dying", generate=pb.Generate(position=0, decoding=decoding))
            while True:
                response = await stream.read()
                received += [token.id for token in response.generated.tokens]
                if response.HasField("checkpoint_position") and response.checkpoint_position > 100:
                    break
            service.process.kill()
            service.process.wait()
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            opened = await go_on(stream, "dying")
            at = min(opened.position, len(received))
            received = received[:at]
            await stream.send("dying", generate=pb.Generate(position=0, decoding=decoding, received_position=at))
            while not (response := await stream.read()).generated.finish_reason:
                assert response.HasField("generated"), response
                received += [token.id for token in response.generated.tokens]
            received += [token.id for token in response.generated.tokens]
    assert received == expected


async def test_sessions_spill_when_slots_run_out_and_come_back(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-slots": 4, "max-sessions": 100}) as service:
        async with wire(service.target) as stream:
            for index in range(20):
                opened = await stream.ask(f"s{index}", open=pb.Open(model="tiny-endless"))
                assert opened.HasField("opened"), opened
                await stream.ask(f"s{index}", feed=pb.Feed(token_ids=[index % 16], position=0))
            references = []
            for index in range(20):
                reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
                reference.step(index % 16)
                references.append(reference)
            for round_ in range(3):
                for index, reference in enumerate(references):
                    feed = pb.Feed(token_ids=[2 + round_], position=1 + round_, outputs=LOGITS)
                    fed = await stream.ask(f"s{index}", feed=feed)
                    assert list(fed.fed.outputs[0].logits) == reference.step(2 + round_).tolist()


async def test_a_generation_that_was_not_resumed_survives_a_second_restart(
    tiny_service: LocalService, tiny_repository: Path, tmp_path: Path
) -> None:
    """The second server restores the session, and stores it again before a client asks for the generation's tokens. The
    record includes the tokens that the repetition penalty has seen."""
    flags = {"store": "lmdb", "data-folder": tmp_path, "shutdown-grace-s": 0}
    decoding = pb.Decoding(max_tokens=3000, repetition_penalty=1.05, sampling=pb.Sampling(seed=7))
    async with grpc.aio.insecure_channel(tiny_service.target) as channel:
        request = pb.GenerateRequest(model="tiny-endless", decoding=decoding)
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request)
        expected = [token.id async for response in call for token in response.generated.tokens]
    received: list[int] = []
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("twice", open=held())
            await stream.send("twice", generate=pb.Generate(position=0, decoding=decoding))
            received += [token.id for token in (await stream.read()).generated.tokens]
            service.stop()
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            opened = await go_on(stream, "twice")
            assert 0 < opened.position < 3000
            service.stop()
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await go_on(stream, "twice")
            generate = pb.Generate(position=0, decoding=decoding, received_position=len(received))
            await stream.send("twice", generate=generate)
            while True:
                response = await stream.read()
                assert response.HasField("generated"), response
                received += [token.id for token in response.generated.tokens]
                if response.generated.finish_reason:
                    break
    assert received == expected


async def test_a_cancelled_strict_generation_delivers_its_tokens_before_its_end(
    tiny_repository: Path, tmp_path: Path
) -> None:
    """Its tokens wait until they are stored, and its end comes after them."""
    with local_service(tiny_repository, {"store": "lmdb", "data-folder": tmp_path}) as service:
        async with wire(service.target) as stream:
            await stream.ask("s", open=held(durability=pb.DURABILITY_STRICT))
            position = 0
            for _ in range(30):
                generating = await stream.send("s", generate=pb.Generate(decoding=pb.Decoding(max_tokens=5000)))
                first = await stream.read()
                position += len(first.generated.tokens)
                cancelling = await stream.send("s", cancel=pb.Cancel())
                ended: list[int] = []
                while cancelling not in ended:
                    response = await stream.read()
                    ended += [response.request_id] if response.WhichOneof("response") != "generated" else []
                    if response.HasField("generated"):
                        assert generating not in ended, "nothing of it comes after its end"
                        position += len(response.generated.tokens)
                        if response.generated.finish_reason:  # the Cancel came after the generation's end
                            ended.append(generating)
                    assert response.position == position
                assert ended == [generating, cancelling]

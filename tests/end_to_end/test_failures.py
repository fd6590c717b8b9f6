"""Sessions survive when the store fails, a record is damaged, a server leaves, or models are loaded and unloaded."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import grpc
import pytest

from carousel import AsyncClient
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.bundles import write_language_model
from tests.end_to_end.wire import Wire, wire
from tests.reference import ReferenceSession
from tests.services import local_service, redis_server
from tests.sessions.stores.torn import tear
from tests.waiting import until

RESUME = pb.Open(resume=pb.Resume())


def held(durability: pb.Durability.ValueType, model: str = "tiny-endless") -> pb.Open:
    policy = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
    return pb.Open(model=model, on_disconnect=policy, durability=durability)


async def fed(stream: Wire, session_id: str, feed: pb.Feed) -> pb.StreamResponse | None:
    """Feeds a session. Returns the response, or None if the feed was refused."""
    response = await stream.ask(session_id, feed=feed)
    return response if response.HasField("fed") else None


def store_events(service: LocalService) -> list[str]:
    """Returns the events about the store that the server has logged."""
    return [str(line["event"]) for line in service.log if str(line["event"]).startswith("store.")]


async def test_an_outage_of_the_store_fails_only_strict_sessions(tiny_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "checkpoint-interval-s": 0.1}
        with local_service(tiny_repository, flags) as service:
            async with wire(service.target) as stream:
                await stream.ask("strict", open=held(pb.DURABILITY_STRICT))
                await stream.ask("loose", open=held(pb.DURABILITY_CHECKPOINT))
                await stream.ask("strict", feed=pb.Feed(token_ids=[5], position=0))
                redis.stop()
                for position in range(3):
                    assert await fed(stream, "loose", pb.Feed(token_ids=[5], position=position))
                refused = await stream.ask("strict", feed=pb.Feed(token_ids=[6], position=1))
                assert (refused.error.code, refused.error.reason) == (
                    grpc.StatusCode.UNAVAILABLE.value[0],
                    "STORE_UNAVAILABLE",
                )
                assert refused.error.retry_delay.ToMilliseconds() == 1000
                assert "send the request again" in refused.error.message
                await asyncio.sleep(0.3)  # the outage lasts for some checkpoints
                redis.start()
                again = await until(lambda: fed(stream, "strict", pb.Feed(token_ids=[6], position=1)))
                assert (again.position, again.fed.replayed, again.checkpoint_position) == (2, True, 2)

                async def stored() -> int:
                    return (await stream.ask("loose", feed=pb.Feed(token_ids=[5]))).checkpoint_position

                assert await until(stored) >= 3
            # the recovery is logged only when heartbeats succeed again, too
            await until(lambda: len(store_events(service)) > 1)
            assert store_events(service) == ["store.failed", "store.recovered"]


async def test_a_torn_record_is_set_aside_and_reported_and_affects_no_other_record(
    tiny_repository: Path, tmp_path: Path
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 0.05}
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            for name in ("torn", "whole", "broken"):
                await stream.ask(name, open=held(pb.DURABILITY_STRICT))
                await stream.ask(name, feed=pb.Feed(token_ids=[5], position=0))
    tear(tmp_path / "sessions", "torn", lambda record: record[:-100] + bytes([record[-100] ^ 1]) + record[-99:])
    tear(tmp_path / "sessions", "broken", lambda record: b"?")
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            torn = await stream.ask("torn", open=RESUME)
            assert torn.error.reason == "SNAPSHOT_CORRUPT"
            broken = await stream.ask("broken", open=RESUME)
            assert broken.error.reason == "SNAPSHOT_CORRUPT"
            whole = await stream.ask("whole", open=RESUME)
            assert whole.position == 1
            gone = await stream.ask("torn", open=RESUME)
            assert gone.error.reason == "SESSION_NOT_FOUND"
        found = [line["session_id"] for line in service.log if line["event"] == "store.record_corrupt"]
        assert found == ["torn", "broken"]


async def test_a_server_whose_data_folder_is_replaced_acknowledges_nothing_until_it_is_back(
    tiny_repository: Path, tmp_path: Path
) -> None:
    folder, away = tmp_path / "data", tmp_path / "away"
    flags = {"store": "lmdb", "data-folder": folder}
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("strict", open=held(pb.DURABILITY_STRICT))
            await stream.ask("strict", feed=pb.Feed(token_ids=[5], position=0))
            folder.rename(away)
            with local_service(tiny_repository, flags) as other:
                refused = await stream.ask("strict", feed=pb.Feed(token_ids=[6], position=1))
                assert refused.error.reason == "STORE_UNAVAILABLE"
                async with wire(other.target) as another:
                    opened = await another.ask("strict", open=held(pb.DURABILITY_STRICT))
                    assert opened.HasField("opened"), opened
            assert store_events(service) == ["store.failed"]
            (reason,) = (line["reason"] for line in service.log if line["event"] == "store.failed")
            assert f"{folder / 'sessions'}" in str(reason)
            assert "while the server runs" in str(reason)
            shutil.rmtree(folder)
            away.rename(folder)
            again = await until(lambda: fed(stream, "strict", pb.Feed(token_ids=[6], position=1)))
            assert again.position == 2
        await until(lambda: len(store_events(service)) > 1)
        assert store_events(service) == ["store.failed", "store.recovered"]


async def test_a_rolling_restart_loses_and_doubles_nothing(tiny_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "shutdown-grace-s": 5}
        with local_service(tiny_repository, flags) as old, local_service(tiny_repository, flags) as new:
            async with wire(old.target) as stream, wire(new.target) as other:
                await stream.ask("moving", open=held(pb.DURABILITY_CHECKPOINT))
                await stream.ask("moving", feed=pb.Feed(token_ids=[5, 6, 7], position=0))
                old.process.send_signal(signal.SIGTERM)
                notice = await stream.read()
                assert notice.HasField("go_away")
                assert notice.go_away.grace.ToSeconds() == 5
                opened = await other.ask("moving", open=RESUME)
                assert (opened.position, opened.opened.restored_from) == (3, pb.RESTORED_FROM_STORE)
                reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
                for token in (5, 6, 7):
                    reference.step(token)
                outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
                fed = await other.ask("moving", feed=pb.Feed(token_ids=[8], position=3, outputs=outputs))
                assert list(fed.fed.outputs[0].logits) == reference.step(8).tolist()
            assert old.process.wait(10) == 0


async def test_two_servers_never_both_have_a_session(tiny_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key}
        with local_service(tiny_repository, flags) as one, local_service(tiny_repository, flags) as other:
            async with wire(one.target) as first, wire(other.target) as second:
                await first.ask("wanted", open=held(pb.DURABILITY_CHECKPOINT))
                await first.ask("wanted", feed=pb.Feed(token_ids=[5], position=0))
                taken = await first.ask("wanted", feed=pb.Feed(token_ids=[6], position=1))
                assert taken.position == 2
                for index in range(4):
                    here, there = (second, first) if index % 2 == 0 else (first, second)
                    opened = await here.ask("wanted", open=RESUME)
                    assert opened.position == 2 + index, "what was not stored yet was, before it was let go"
                    notice = await there.read()
                    assert notice.closed.reason == pb.CLOSE_REASON_MOVED
                    refused = await there.ask("wanted", feed=pb.Feed(token_ids=[7]))
                    assert refused.error.metadata["close_reason"] == "moved"
                    fed = await here.ask("wanted", feed=pb.Feed(token_ids=[7], position=2 + index))
                    assert fed.position == 3 + index
                in_use = await second.ask("wanted", open=held(pb.DURABILITY_CHECKPOINT))
                assert in_use.error.reason == "SESSION_ID_IN_USE"


async def test_sessions_keep_their_version_while_versions_are_loaded_and_unloaded(tmp_path: Path) -> None:
    write_language_model(tmp_path, model="lm", bos_id=1, eos_id=None, seed=1)
    with local_service(tmp_path) as service:
        async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
            models: models_pb2_grpc.ModelsAsyncStub = models_pb2_grpc.ModelsStub(channel)
            sessions: sessions_pb2_grpc.SessionsAsyncStub = sessions_pb2_grpc.SessionsStub(channel)
            old = await stream.ask("old", open=pb.Open(model="lm"))
            assert old.opened.version == 1
            snapshot = (await sessions.Snapshot(sessions_pb2.SessionsSnapshotRequest(session_id="old"))).snapshot
            write_language_model(tmp_path, model="lm", bos_id=1, eos_id=None, seed=2, version=2)
            shutil.copytree(tmp_path / "lm" / "1", tmp_path / "lm" / "3")
            (tmp_path / "lm" / "3" / "step.onnx").write_bytes(b"torn")
            loaded = await models.Load(models_pb2.ModelsLoadRequest())
            found = [(info.version, info.status) for info in loaded.models]
            assert found == [
                (1, models_pb2.MODEL_STATUS_SERVING),
                (2, models_pb2.MODEL_STATUS_SERVING),
                (3, models_pb2.MODEL_STATUS_FAILED),
            ]
            new = await stream.ask("new", open=pb.Open(model="lm"))
            assert new.opened.version == 2, "a bad bundle replaces no good one"
            outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
            for name, version in (("old", 1), ("new", 2)):
                reference = ReferenceSession(tmp_path / "lm" / str(version))
                fed = await stream.ask(name, feed=pb.Feed(token_ids=[5], outputs=outputs))
                assert list(fed.fed.outputs[0].logits) == reference.step(5).tolist()
            unloaded = await models.Unload(models_pb2.ModelsUnloadRequest(model="lm", version=1))
            assert unloaded.session_count == 1
            fed = await stream.ask("old", feed=pb.Feed(token_ids=[6]))
            assert fed.HasField("fed"), "it stays with its version"
            refused = await stream.ask("late", open=pb.Open(model="lm", version=1))
            assert refused.error.reason == "MODEL_NOT_FOUND"
            request = sessions_pb2.SessionsRestoreRequest(snapshot=snapshot, session_id="again")
            for version in (1, 9):
                if version == 9:
                    request.version = version
                text = rf"with lm version {version} \(fp32\), which this server does not serve: version = {version} of"
                with pytest.raises(grpc.aio.AioRpcError, match=text) as raised:
                    await sessions.Restore(request)
                assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            request = sessions_pb2.SessionsRestoreRequest(snapshot=snapshot, session_id="again", version=2)
            assert (await sessions.Restore(request)).session.version == 2
            with pytest.raises(grpc.aio.AioRpcError, match="has no such version"):
                await models.Load(models_pb2.ModelsLoadRequest(model="other"))
            assert (await stream.ask("old", close=pb.Close())).HasField("closed")


async def test_the_folder_of_models_can_be_watched(tmp_path: Path) -> None:
    write_language_model(tmp_path, model="lm", bos_id=1, seed=1)
    with local_service(tmp_path, {"watch-models-s": 0.05}) as service:
        write_language_model(tmp_path, model="lm", bos_id=1, seed=2, version=2)
        async with AsyncClient(service.target) as client:

            async def is_newer() -> bool:
                async with client.session("lm") as session:
                    return session.version == 2

            await until(is_newer)

"""A feed by `Step` during an outage of the store: no error advises a retry that would count twice."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
import pytest

from carousel.v1 import inference_pb2 as pb
from tests.end_to_end.test_step import MODEL, fed, is_busy, stubs
from tests.services import local_service, redis_server
from tests.waiting import until


@pytest.mark.parametrize(
    ("position", "code", "reason"),
    [(None, grpc.StatusCode.ABORTED, "FEED_UNCERTAIN"), (1, grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")],
)
async def test_a_feed_that_is_not_stored_may_be_sent_again_if_it_has_a_position(
    tiny_repository: Path, tmp_path: Path, position: int | None, code: grpc.StatusCode, reason: str
) -> None:
    key = tmp_path / "snapshot.key"
    key.write_bytes(os.urandom(32))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 5}
        with local_service(tiny_repository, flags) as service:
            async with stubs(service.target) as calls:
                strict = pb.Open(model=MODEL, durability=pb.DURABILITY_STRICT)
                await calls.step("s", open=strict, feed=fed(5, position=0))
                redis.stop()
                error = await calls.refused("s", feed=fed(6, position=position))
                assert (error.code, error.reason) == (code.value[0], reason)
                assert ("read the session's position before you retry" in error.message) == (position is None)
                redis.start()
                again = await calls.step("s", feed=fed(6, position=1))
                assert (again.position, again.fed.replayed, again.checkpoint_position) == (2, True, 2)


async def test_a_long_feed_ends_before_its_server_does(tiny_repository: Path, tmp_path: Path) -> None:
    """A session cannot be stored during a feed. If the server ended then, the feed that was answered before would be
    lost."""
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 60}
    kept = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP)
    tokens = [5 + at % 7 for at in range(130_000)]
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls:
            opening = pb.Open(model=MODEL, on_disconnect=kept)
            assert (await calls.step("s", open=opening, feed=fed(5, position=0))).position == 1
            long = asyncio.create_task(calls.step("s", feed=fed(*tokens, position=1)))
            await until(lambda: is_busy(calls, "s"))
            assert not long.done()
            assert await asyncio.to_thread(service.stop) == 0
            assert (await long).position == 130_001
    with local_service(tiny_repository, flags) as service:
        async with stubs(service.target) as calls:
            assert (await calls.step("s")).position == 130_001

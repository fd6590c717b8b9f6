"""Programs that use the client library continue after an outage of the store, and each token is applied once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from carousel import AsyncClient, Client, DeadlineExceededError, PositionMismatchError
from tests.reference import ReferenceSession
from tests.services import RedisServer, local_service, redis_server

OUTAGE_S = 1.5
"""Longer than the time-outs of the calls that must fail meanwhile."""


def blocking(target: str, redis: RedisServer) -> list[Any]:
    """Feeds and generates while the store is down. Some calls time out. Returns the positions and outputs."""
    with Client(target) as client:
        session = client.session("tiny-endless", durability="strict")
        session.feed(5)
        redis.stop()
        timer = threading.Timer(OUTAGE_S, redis.start)
        timer.start()
        with pytest.raises(DeadlineExceededError):
            session.feed(6, timeout=0.3)
        with pytest.raises(DeadlineExceededError):
            session.feed(6, timeout=0.1)  # the same feed again
        with pytest.raises(PositionMismatchError):
            session.feed(7, timeout=30)  # another feed at the position of the first, which has been applied
        timer.join()
        found = [session.position, session.feed(7, logits=True).outputs[0].logits]
        redis.stop()
        timer = threading.Timer(OUTAGE_S, redis.start)
        timer.start()
        found += [[token.id for token in session.generate(max_tokens=4, min_tokens=4)]]
        found += [session.feed([8, 9], logits=True).outputs[0].logits, session.position]
        timer.join()
        session.close()
        return found


async def asynchronous(target: str, redis: RedisServer) -> list[Any]:
    """Does the same with asyncio."""
    async with AsyncClient(target) as client:
        session = await client.session("tiny-endless", durability="strict")
        await session.feed(5)
        redis.stop()
        start = asyncio.create_task(started_later(redis))
        with pytest.raises(DeadlineExceededError):
            await session.feed(6, timeout=0.3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.feed(6), 0.1)
        with pytest.raises(PositionMismatchError):
            await session.feed(7, timeout=30)
        await start
        found = [session.position, (await session.feed(7, logits=True)).outputs[0].logits]
        redis.stop()
        start = asyncio.create_task(started_later(redis))
        found += [[token.id async for token in session.generate(max_tokens=4, min_tokens=4)]]
        found += [(await session.feed([8, 9], logits=True)).outputs[0].logits, session.position]
        await start
        await session.close()
        return found


async def started_later(redis: RedisServer) -> None:
    """Starts the store again after the outage."""
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(redis.start)


def test_a_strict_session_continues_after_an_outage_of_the_store(tiny_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
    for token in (5, 6):
        reference.step(token)
    expected: list[Any] = [2, tuple(reference.step(7).tolist()), reference.generate(4)]
    reference.step(8)
    expected += [tuple(reference.step(9).tolist()), 9]
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 30}
        with local_service(tiny_repository, flags) as service:
            assert blocking(service.target, redis) == expected
            assert asyncio.run(asynchronous(service.target, redis)) == expected

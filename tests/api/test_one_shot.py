"""One-call requests that wait for a slot hold a bounded number of bytes, and release them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from carousel.v1 import inference_pb2 as pb
from service.api.caller import NOBODY
from service.api.inference import _open
from service.api.one_shot import OneShot
from service.api.outbox import Outbox
from service.errors import QueueFullError
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns, until


def call(it: Sessions) -> OneShot:
    return OneShot(cast(Any, SimpleNamespace(sessions=it.service)), NOBODY, Outbox(9))


async def test_calls_that_wait_for_a_slot_are_bounded_in_bytes(tiny_repository: Path) -> None:
    request = pb.GenerateRequest(prompt=pb.Sequence(ids=pb.TokenIds(ids=[5] * 600)))
    async with opened(tiny_repository, num_slots=1, max_deferred_bytes=1000) as it:
        at_once = call(it)
        _open(at_once, it.served, request, it.service.limits)
        at_once.end()
        assert it.service.deferral.num_bytes == 0, "it did not wait"
        await until(lambda: it.served.engine.statistics.slots_used == 0)
        await it.open()
        waits, refused = call(it), call(it)
        _open(waits, it.served, request, it.service.limits)
        assert it.service.deferral.num_bytes == request.ByteSize()
        with pytest.raises(QueueFullError, match="bytes of requests wait"):
            _open(refused, it.served, request, it.service.limits)
        await turns(5)
        waits.end()
        await it.service.tasks.stop()
        assert it.service.deferral.num_bytes == 0

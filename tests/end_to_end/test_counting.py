"""The metrics count each token that moved a session once, whatever happened to its request."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.end_to_end.test_operation import scrape
from tests.end_to_end.wire import Wire, lm, wire
from tests.services import local_service
from tests.waiting import until

ENDLESS = "tiny-endless"
NONE = pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)


def counted(service: LocalService, name: str, label: str) -> Counter[str]:
    """Returns a counter of the endless model, by the values of one label."""
    found: Counter[str] = Counter()
    for (sample, labels), value in scrape(service).items():
        if sample == f"carousel_{name}" and ("model", ENDLESS) in labels:
            found[dict(labels)[label]] += int(value)
    return +found


@asynccontextmanager
async def sessions_of(service: LocalService, count: int) -> AsyncIterator[tuple[Wire, list[int]]]:
    """Yields a stream with `count` sessions, and their handles."""
    async with wire(service.target) as stream:
        handles = [(await stream.ask(f"s{at}", open=lm(ENDLESS))).opened.handle for at in range(count)]
        yield stream, handles


async def generated_until_deadline(inference: Any) -> int:
    """Runs a generation until its deadline expires. Returns the last position that its client received."""
    received = 0
    request = pb.GenerateRequest(model=ENDLESS, decoding=pb.Decoding(max_tokens=60_000))
    call = inference.Generate(request, timeout=0.3)
    with suppress(grpc.aio.AioRpcError):
        async for part in call:
            received = part.position
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return received


def batch(handles: Sequence[int], positions: Sequence[int] = (), tokens: Sequence[int] = ()) -> pb.StepBatch:
    return pb.StepBatch(handles=handles, token_ids=tokens or [5] * len(handles), positions=positions, outputs=NONE)


async def test_rows_that_are_refused_move_nothing_and_count_as_errors(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with sessions_of(service, 5) as (stream, handles):
            await stream.ask(step_batch=batch(handles, [0] * 5))
            again = await stream.ask(step_batch=batch(handles, [0] * 5))
            assert again.batch_stepped.replayed
            assert counted(service, "tokens_total", "request") == {"step_batch": 5}
            assert counted(service, "replayed_requests_total", "request") == {"step_batch": 1}
            assert not counted(service, "errors_total", "reason")
            await stream.ask(step_batch=batch(handles, [1, 1, 9, 1, 1]))
            assert counted(service, "errors_total", "reason") == {"POSITION_MISMATCH": 1}
            await stream.ask(step_batch=batch(handles, tokens=[5, 5, 500, 5, 5]))
            assert counted(service, "tokens_total", "request") == {"step_batch": 13}
            refused = pb.StepBatch(
                handles=handles[:2], token_ids=[5] * 5, counts=[2, 3], positions=[99, 98], outputs=NONE
            )
            await stream.ask(step_batch=refused)
            await stream.ask(step_batch=batch([*handles[:4], 77]))
            assert counted(service, "tokens_total", "request") == {"step_batch": 17}
            assert counted(service, "replayed_requests_total", "request") == {"step_batch": 1}
            assert counted(service, "errors_total", "reason") == {
                "POSITION_MISMATCH": 3,
                "TOKEN_OUT_OF_VOCABULARY": 1,
                "SESSION_NOT_OPEN": 1,
            }


async def test_what_was_done_before_a_cancellation_counts(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with sessions_of(service, 2) as (stream, _):
            await stream.send("s0", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
            while (response := await stream.read()).position < 100:
                pass
            await stream.send("s0", cancel=pb.Cancel())
            while not (response := await stream.read()).HasField("error"):
                pass
            assert response.position >= 100
            assert (await stream.read()).HasField("cancelled")
            assert counted(service, "tokens_total", "request") == {"generate": response.position}
            await stream.send("s1", feed=pb.Feed(token_ids=[5] * 100_000, outputs=NONE))
            for _ in range(3):  # each is answered between two chunks of the long feed
                await stream.ask("s0", feed=pb.Feed(token_ids=[5], outputs=NONE))
            await stream.send("s1", cancel=pb.Cancel())
            fed = await stream.read()
            assert fed.HasField("error")
            assert 0 < fed.position < 100_000
            assert counted(service, "tokens_total", "request")["feed"] == 3 + fed.position


async def test_what_was_done_for_a_client_that_left_counts(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with wire(service.target) as stream:
            await stream.ask("kept", open=lm(ENDLESS, on_disconnect={"action": pb.DISCONNECT_ACTION_HOLD}))
            await stream.send("kept", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
            while (await stream.read()).position < 100:
                pass
        async with grpc.aio.insecure_channel(service.target) as channel:
            sessions, inference = sessions_pb2_grpc.SessionsStub(channel), inference_pb2_grpc.InferenceStub(channel)

            async def position() -> int | None:
                kept = (await sessions.Get(sessions_pb2.SessionsGetRequest(session_id="kept"))).session
                is_counted = counted(service, "tokens_total", "request") == {"generate": kept.position}
                return None if kept.attached or not is_counted else kept.position

            before = await until(position)
            received = await generated_until_deadline(inference)
            assert received > 0
            await until(lambda: counted(service, "tokens_total", "request")["generate"] - before >= received)


async def test_a_version_that_was_loaded_again_shows_the_sessions_of_both_engines(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
            models = models_pb2_grpc.ModelsStub(channel)
            await stream.ask("old", open=lm(ENDLESS))
            slots = counted(service, "slots", "variant")
            await models.Unload(models_pb2.ModelsUnloadRequest(model=ENDLESS, version=1))
            await models.Load(models_pb2.ModelsLoadRequest(model=ENDLESS))
            assert counted(service, "slots_used", "variant") == {"fp32": 1}
            await stream.ask("new", open=lm(ENDLESS))
            assert counted(service, "slots_used", "variant") == {"fp32": 2}
            await stream.ask("old", close=pb.Close())
            await until(lambda: counted(service, "slots", "variant") == slots)
            assert counted(service, "slots_used", "variant") == {"fp32": 1}

"""No message is larger than `max_message_bytes`: a response is split into pages or parts, or refused with a reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from carousel.v1 import error_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.conftest import SHIPPED, only
from tests.end_to_end.wire import Wire, g2p, lm, wire
from tests.services import local_service

LIMIT = 6000
OPTIONS = (("grpc.max_receive_message_length", LIMIT),)
"""Options of a client that accepts no larger message."""
PYCHAR = "pychar-en"


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    """Yields a server with a small limit."""
    flags = {"max-message-bytes": LIMIT, "replay-tokens": 60_000, "max-batch-rows": 32}
    with local_service(SHIPPED, flags) as started:
        yield started
        assert not [line for line in started.log if line["level"] == "error"]


class Calls:
    """The stubs of one client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = inference_pb2_grpc.InferenceStub(channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(channel)
        self.models = models_pb2_grpc.ModelsStub(channel)


@asynccontextmanager
async def calls(service: LocalService) -> AsyncIterator[Calls]:
    async with grpc.aio.insecure_channel(service.target, options=OPTIONS) as channel:
        yield Calls(channel)


async def refusal(call: Any) -> str:
    """Returns the reason of a refusal by the server. Fails if the client's transport refused the message instead."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    for name, value in refused.value.trailing_metadata() or ():
        if name == "carousel-error-bin":
            return error_pb2.Error.FromString(value).reason  # type: ignore[arg-type]  # a key in -bin has bytes
    raise AssertionError(refused.value)


async def test_a_page_of_sessions_ends_before_it_is_too_large(service: LocalService) -> None:
    names = [f"{'long' * 25}{at}" for at in range(70)]
    async with wire(service.target, OPTIONS) as stream, calls(service) as client:
        for name in names:
            await stream.ask(name, open=lm(PYCHAR))
        found: list[str] = []
        token, num_pages = "", 0
        while token or not found:
            page = await client.sessions.List(sessions_pb2.SessionsListRequest(page_size=1000, page_token=token))
            assert page.ByteSize() <= LIMIT
            assert page.total_count == len(names)
            found += [one.session_id for one in page.sessions]
            token, num_pages = page.next_page_token, num_pages + 1
        assert found == names
        assert num_pages == 3, "pages are filled"


async def test_a_snapshot_that_is_too_large_is_refused_with_a_reason(service: LocalService) -> None:
    async with wire(service.target, OPTIONS) as stream, calls(service) as client:
        await stream.ask("k", open=g2p())
        await stream.ask("k", feed=pb.Feed(token_ids=[5], mark=True))
        snapshot = client.sessions.Snapshot(sessions_pb2.SessionsSnapshotRequest(session_id="k"))
        assert await refusal(snapshot) == "ANSWER_TOO_LARGE"
        assert (await stream.ask("k", feed=pb.Feed(token_ids=[6]))).position == 2, "the session goes on"


async def test_models_and_states_that_are_too_large_are_refused_with_a_reason(tmp_path: Path) -> None:
    with local_service(only(tmp_path, PYCHAR, "g2p-en"), {"max-message-bytes": 1024}) as service:
        async with wire(service.target) as stream, calls(service) as client:
            await stream.ask("k", open=lm(PYCHAR))
            state = sessions_pb2.SessionsGetStateRequest(session_id="k")
            assert await refusal(client.sessions.GetState(state)) == "ANSWER_TOO_LARGE"
            assert await refusal(client.models.List(models_pb2.ModelsListRequest())) == "ANSWER_TOO_LARGE"
            request = models_pb2.ModelsGetRequest(model="g2p-en")
            assert await refusal(client.models.Get(request)) == "ANSWER_TOO_LARGE"
            await client.models.Unload(models_pb2.ModelsUnloadRequest(model="g2p-en", version=1))
            answer = await client.models.Load(models_pb2.ModelsLoadRequest(model="g2p-en"))
            assert answer.ByteSize() <= 1024
            assert [(one.model, len(one.target_vocabulary), one.has_encoder) for one in answer.models] == [
                ("g2p-en", 0, True)
            ], "it is loaded: the answer leaves the vocabularies out"


async def test_scores_and_sources_that_are_too_large_are_refused_before_they_are_computed(
    service: LocalService,
) -> None:
    target = pb.Sequence(ids=pb.TokenIds(ids=[5] * 24))
    async with wire(service.target, OPTIONS) as stream, calls(service) as client:
        request = pb.ScoreRequest(model=PYCHAR, targets=[target] * 60)
        assert await refusal(client.inference.Score(request)) == "ANSWER_TOO_LARGE"
        del request.targets[30:]
        assert len((await client.inference.Score(request)).scores) == 30
        seen = set()
        for length in (10, 20, 40, 60):
            answer = await stream.ask(f"s{length}", open=g2p("c" * length, outputs={"kind": pb.OUTPUT_KIND_LOGITS}))
            assert answer.ByteSize() <= LIMIT
            seen.add(str(answer.WhichOneof("response")))
        assert "opened" in seen


async def read_to_the_end(stream: Wire) -> tuple[int, int]:
    """Reads a generation to its end. Returns its position, and the size of its largest message in bytes."""
    largest = 0
    while True:
        response = await stream.read()
        assert response.HasField("generated"), response
        largest = max(largest, response.ByteSize())
        if response.generated.finish_reason:
            return response.position, largest


@pytest.mark.parametrize("has_scores", [False, True])
async def test_the_parts_of_a_generation_are_small_however_late_they_are_read(
    service: LocalService, has_scores: bool
) -> None:
    decoding = pb.Decoding(max_tokens=3000, log_probabilities=has_scores)
    hold = {"action": pb.DISCONNECT_ACTION_HOLD}
    name = f"late{has_scores}"
    async with wire(service.target, OPTIONS) as stream:
        await stream.ask(name, open=lm(PYCHAR, on_disconnect=hold))
        await stream.send(name, generate=pb.Generate(position=0, decoding=decoding))
        assert (await read_to_the_end(stream))[1] <= LIMIT
    async with wire(service.target, OPTIONS) as stream, calls(service) as client:
        await stream.ask(name, open=pb.Open(resume=pb.Resume()))
        await stream.send(name, generate=pb.Generate(position=0, decoding=decoding))
        position, largest = await read_to_the_end(stream)  # the whole generation is ready at once
        assert position == 3000
        assert largest <= LIMIT
        request = pb.GenerateRequest(model=PYCHAR, decoding=decoding)
        parts = [part async for part in client.inference.Generate(request)]
        assert parts[-1].position == 3000
        assert max(part.ByteSize() for part in parts) <= LIMIT
        await stream.ask(name, close=pb.Close())


async def test_stored_answers_over_a_smaller_limit_are_not_sent(tmp_path: Path) -> None:
    models = only(tmp_path / "models", PYCHAR)
    flags = {"store": "lmdb", "data-folder": tmp_path / "data"}
    outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True)
    decoding = pb.Decoding(max_tokens=1000, min_tokens=1000, beam_search=pb.BeamSearch(beam_size=2))
    asked: dict[str, Any] = {
        "fed": {"feed": pb.Feed(token_ids=[5] * 100, position=0, outputs=outputs)},
        "searched": {"generate": pb.Generate(position=0, decoding=decoding)},
    }
    with local_service(models, flags) as service:
        async with wire(service.target) as stream:
            for name, request in asked.items():
                await stream.ask(name, open=lm(PYCHAR, durability=pb.DURABILITY_STRICT))
                answer = await stream.ask(name, **request)
                assert answer.ByteSize() > 20_000
            service.stop()
    with local_service(models, {**flags, "max-message-bytes": 20_000}) as service:
        async with wire(service.target) as stream:
            for name, request in asked.items():
                await stream.ask(name, open=pb.Open(resume=pb.Resume()))
                answer = await stream.ask(name, **request)
                assert answer.error.reason == "ANSWER_TOO_LARGE"

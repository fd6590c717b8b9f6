"""Many clients at once share batches, and all are served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from tests.bundles import write_language_model
from tests.end_to_end.test_operation import scrape
from tests.end_to_end.wire import lm
from tests.services import local_service

NUM_CLIENTS = 500
NUM_FEEDS = 10
FEED_SIZE = 16


@pytest.fixture(scope="module")
def wide_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a language model whose runs take longer than reading the requests for them.

    Requests therefore wait, on a machine of any speed, and the scheduler decides what fills a batch, not the clients'
    speed.
    """
    folder = tmp_path_factory.mktemp("wide")
    write_language_model(folder, model="wide", bos_id=1, eos_id=None, hidden_size=384)
    return folder


async def test_500_clients_see_full_batches_and_each_is_served(wide_repository: Path) -> None:
    """Each client has its own stream, with many feeds in flight. The mean batch size is taken from the metrics."""
    channels = 8
    with local_service(wide_repository) as service:
        options = [[("carousel.connection", number)] for number in range(channels)]
        connections = [grpc.aio.insecure_channel(service.target, option) for option in options]

        async def client(index: int) -> list[int]:
            call = inference_pb2_grpc.InferenceStub(connections[index % channels]).Stream()
            await call.write(pb.StreamRequest(open=lm("wide")))
            await call.read()
            for number in range(NUM_FEEDS):
                feed = pb.Feed(token_ids=[1 + index % 16] * FEED_SIZE, position=number * FEED_SIZE)
                await call.write(pb.StreamRequest(feed=feed))
            positions = []
            for _ in range(NUM_FEEDS):
                answer = await call.read()
                assert isinstance(answer, pb.StreamResponse)
                assert answer.HasField("fed"), answer
                positions.append(answer.position)
            call.cancel()
            return positions

        answered = await asyncio.gather(*map(client, range(NUM_CLIENTS)))
        seen = scrape(service)
        for connection in connections:
            await connection.close()
    expected = [FEED_SIZE * number for number in range(1, NUM_FEEDS + 1)]
    assert answered == [expected] * NUM_CLIENTS
    # a batch takes 256 tokens, so 16 such feeds fill it
    assert mean_batch(seen, "wide") >= 13


async def test_500_generations_go_in_batches_as_full_as_they_may_be(wide_repository: Path) -> None:
    with local_service(wide_repository, {"max-batch-rows": 100}) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(model="wide", decoding=pb.Decoding(max_tokens=200))

            async def client() -> int:
                return sum([len(response.generated.tokens) async for response in stub.Generate(request)])

            assert await asyncio.gather(*(client() for _ in range(NUM_CLIENTS))) == [200] * NUM_CLIENTS
        assert 85 <= mean_batch(scrape(service), "wide") <= 100


def mean_batch(seen: dict[tuple[str, tuple[tuple[str, str], ...]], float], model: str) -> float:
    labels = (("graph", "step"), ("model", model), ("variant", "fp32"), ("version", "1"))
    return seen["carousel_batch_size_sum", labels] / seen["carousel_batch_size_count", labels]

"""A model that reads frames accepts any number of samples: a flat list of numbers is cut into steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import grpc
import numpy as np
from numpy.typing import NDArray

from carousel import AsyncClient, Client, Frames, InvalidArgumentError
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from examples.ports import free_port
from tests.end_to_end.wire import wire
from tests.export import foreign
from tests.export.test_export_onnx import export
from tests.reference import ReferenceSession
from tests.services import local_service

FRAME = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the bundle of a voice activity detector."""
    made = tmp_path_factory.mktemp("made")
    file = foreign.voice_activity(made / "vad.onnx")
    return export(file, made / "repository", "--constant", "sr=16000", "--axis", f"samples={FRAME}")


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[LocalService]:
    with local_service(bundle.parent.parent) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def samples(steps: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, steps * FRAME).astype(np.float32)


def answers(bundle: Path, given: NDArray[np.float32]) -> bytes:
    """Returns the results of a plain loop over the graph."""
    reference = ReferenceSession(bundle)
    return bits([reference.step(frame) for frame in given.reshape(-1, FRAME)])


def bits(values: object) -> bytes:
    return np.array(values, np.float32).tobytes()


def flat(given: NDArray[np.float32]) -> pb.Tensor:
    return pb.Tensor(shape=given.shape, data=given.astype("<f4").tobytes())


async def test_a_tensor_of_one_axis_is_steps_on_the_wire(service: LocalService, bundle: Path) -> None:
    given = samples(5)
    every = pb.OutputSpec(every_position=True)
    async with wire(service.target) as stream:
        opened = (await stream.ask("s", open=pb.Open(model="foreign"))).opened
        assert opened.feature_size == FRAME
        feed = pb.Feed(features=flat(given), position=0, outputs=every)
        fed = [await stream.ask("s", feed=feed) for _ in range(2)]
        assert [(one.fed.replayed, one.position) for one in fed] == [(False, 5), (True, 5)]
        assert bits([one.values for one in fed[0].fed.outputs]) == answers(bundle, given)
        rows = pb.Tensor(shape=[5, FRAME], data=feed.features.data)
        again = await stream.ask("s", feed=pb.Feed(features=rows, position=0, outputs=every))
        assert again.fed.replayed, "the same vectors in two axes are the same feed"
        await stream.ask("t", open=pb.Open(model="foreign"))
        stepped = await stream.ask(step_batch=pb.StepBatch(handles=[2], counts=[5], features=flat(given)))
        assert bits(stepped.batch_stepped.values) == answers(bundle, given)[-4:]


async def test_an_incomplete_step_is_refused_on_the_wire_and_changes_nothing(service: LocalService) -> None:
    async with wire(service.target) as stream:
        handle = (await stream.ask("s", open=pb.Open(model="foreign"))).opened.handle
        short = flat(samples(2)[:-7])
        message = "has 57 numbers, but each step of foreign reads 32: 7 are missing for 2 steps"
        refused = await stream.ask("s", feed=pb.Feed(features=short))
        assert (refused.error.message, refused.error.field) == (f"feed.features {message}", "feed.features")
        assert (refused.error.code, refused.position) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], 0)
        refused = await stream.ask(step_batch=pb.StepBatch(handles=[handle], counts=[2], features=short))
        assert (refused.error.message, refused.error.field) == (f"step_batch.features {message}", "step_batch.features")
        fed = await stream.ask("s", feed=pb.Feed(features=flat(samples(1)), position=0))
        assert fed.position == 1


async def test_both_clients_feed_numbers_one_after_the_other(service: LocalService, bundle: Path) -> None:
    given = samples(6)
    expected = answers(bundle, given)
    with Client(service.target) as client, client.session("foreign") as session:
        assert session.feature_size == FRAME
        one = session.feed(features=given[:FRAME].tolist())
        rest = session.feed(features=given[FRAME:], every_position=True)
        assert session.position == 6
        assert bits([one.values, *(output.values for output in rest.outputs)]) == expected
        with pytest.raises(InvalidArgumentError, match="each step reads 32: 31 are missing for 1 step"):
            session.feed(features=[0.0])
        assert session.position == 6
    async with AsyncClient(service.target) as other, other.session("foreign") as fed:
        step = await fed.feed(features=given, every_position=True)
        assert bits([output.values for output in step.outputs]) == expected
        with pytest.raises(InvalidArgumentError, match="each step reads 32: 1 is missing for 7 steps"):
            await fed.feed(features=samples(7)[1:])
        async with other.batch("foreign") as batch:
            await batch.open_many([None, None])
            stepped = await batch.step(features=given[: 2 * FRAME])
            assert bits(stepped.values) == answers(bundle, given[:FRAME]) + answers(bundle, given[FRAME : 2 * FRAME])


def test_frames_of_pieces_of_any_size_are_the_steps_of_the_whole(service: LocalService, bundle: Path) -> None:
    """PCM as it comes from a microphone. The last frame is padded."""
    generator = np.random.default_rng(3)
    recorded = generator.integers(-(2**15), 2**15, 9 * FRAME - 5, np.int16).astype("<i2")
    expected = answers(bundle, np.append(recorded.astype(np.float32) / 2**15, np.zeros(5, np.float32)))
    data = recorded.tobytes()
    found: list[tuple[float, ...]] = []
    with Client(service.target) as client, client.session("foreign") as session:
        frames = Frames(session.feature_size)

        def feed(steps: list[Any]) -> None:
            if steps:
                found.extend(output.values for output in session.feed(features=steps, every_position=True).outputs)

        while data:
            count = int(generator.integers(1, 150))
            feed(frames.add_pcm(data[:count]))
            data = data[count:]
        assert frames.missing == 5
        feed(frames.flush())
    assert bits(found) == expected


def test_flat_feeds_are_replayed_to_a_session_whose_server_was_killed(bundle: Path, tmp_path: Path) -> None:
    """The client keeps such feeds as steps."""
    given = samples(40)
    flags = {"port": free_port(), "store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 600}
    with Client(f"127.0.0.1:{flags['port']}") as client:
        with local_service(bundle.parent.parent, flags) as service:
            session = client.session("foreign")
            session.feed(features=given[: 20 * FRAME])
            session.feed(features=given[20 * FRAME : 30 * FRAME].tolist())
            service.process.kill()
            service.process.wait()
        with local_service(bundle.parent.parent, flags):
            found = session.feed(features=given[30 * FRAME :], every_position=True, timeout=30).outputs
            assert (session.position, session.feature_size) == (40, FRAME)
            session.close()
    assert bits([output.values for output in found]) == answers(bundle, given)[-40:]

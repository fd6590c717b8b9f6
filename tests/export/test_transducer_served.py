"""A served transducer emits what a plain loop over its files emits, for chunks of any size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
from numpy.typing import NDArray

from carousel import AsyncClient, Client, InvalidArgumentError, Step, Transducer
from examples.local_service import LocalService
from export.__main__ import main
from export.foreign.axes import Hints
from export.transducers.bare_loop import BareLoop, Rules
from export.transducers.command import read_files
from tests.cli.shell import Shell
from tests.export.transducer_files import FEATURES, write
from tests.services import local_service

MODEL, LIMIT, KEPT = "spells", 3, 8
KINDS = ("three", "two")
Frames = NDArray[np.float32]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return {kind: write(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def service(files: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    to = tmp_path_factory.mktemp("repository")
    for kind, own in files.items():
        arguments = [str(file) for file in own]
        flags = ["--max-symbols", str(LIMIT), "--history", str(KEPT)]
        assert main(["transducer", *arguments, "--name", f"{MODEL}-{kind}", "--to", str(to), *flags]) == 0
    with local_service(to) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


def frames(count: int, seed: int) -> Frames:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def bare(files: list[Path]) -> BareLoop:
    rules = Rules(max_symbols=LIMIT)
    return BareLoop(*read_files(files, Hints(), rules), rules)


def emissions(loop: BareLoop, fed: Frames) -> list[tuple[int, list[int], int]]:
    """Returns the position, the tokens and the number of reached limits for each frame that emits tokens."""
    found = []
    for position, frame in enumerate(fed, 1):
        before = loop.num_limited
        tokens, _ = loop.step(frame)
        if tokens:
            found.append((position, tokens, loop.num_limited - before))
    return found


def emitted_in(step: Step) -> list[tuple[int, list[int], int]]:
    return [(one.position, [token.id for token in one.tokens], one.num_limited) for one in step.outputs]


@pytest.mark.parametrize("kind", KINDS)
async def test_many_sessions_each_emit_what_a_bare_loop_does(
    service: LocalService, files: dict[str, list[Path]], kind: str
) -> None:
    """Runs 16 sessions at once, with chunks of different sizes. Some emit many tokens, and others none."""

    async def run(client: AsyncClient, number: int) -> int:
        fed = frames(40, number) * (0.1 if number % 4 == 0 else 1.5)
        found: list[tuple[int, list[int], int]] = []
        scores: list[float] = []
        async with client.session(f"{MODEL}-{kind}") as session:
            while session.position < len(fed):
                chunk = fed[session.position : session.position + 1 + (number + session.position) % 7]
                step = await session.feed(features=chunk)
                found += emitted_in(step)
                scores += [token.log_probability or 0.0 for token in step.emitted]
        loop = bare(files[kind])
        assert found == emissions(loop, fed)
        assert all(-30.0 < score <= 0.0 for score in scores)
        return len(loop.tokens)

    async with AsyncClient(service.target) as client:
        counts = await asyncio.gather(*(run(client, number) for number in range(16)))
    assert sum(counts) > 100
    assert min(counts) < max(counts)


def test_a_repeated_feed_is_answered_again_with_its_tokens(service: LocalService) -> None:
    fed = frames(30, 1)
    with Client(service.target) as client:
        first = client.step("again", model=f"{MODEL}-three", features=fed, position=0)
        again = client.step("again", features=fed, position=0)
        assert (again.replayed, again.position) == (True, 30)
        assert again.outputs == first.outputs
        assert first.emitted
        client.sessions.close("again")


def test_forks_marks_snapshots_and_state_have_the_tokens_so_far(
    service: LocalService, files: dict[str, list[Path]]
) -> None:
    fed, other = frames(24, 2), frames(10, 3)
    loop = bare(files["three"])
    emissions(loop, fed)
    with Client(service.target) as client, client.session(f"{MODEL}-three", session_id="whole") as session:
        session.feed(features=fed, mark=True)
        so_far = client.sessions.emitted("whole")
        assert so_far.count == len(loop.tokens) > KEPT
        assert [token.id for token in so_far.tokens] == loop.tokens[-KEPT:]
        expected = emitted_in(session.feed(features=other))
        assert client.sessions.fork("whole", fork_session_id="copy").position == 34
        snapshot = client.sessions.snapshot("whole")
        session.rewind(24)
        assert client.sessions.emitted("whole") == so_far
        assert emitted_in(session.feed(features=other)) == expected
        restored = client.sessions.restore(snapshot, session_id="restored").session_id
        names = ("whole", "copy", restored)
        assert len({client.sessions.emitted(name) for name in names}) == 1
        assert len({client.sessions.get_state(name) for name in names}) == 1


def test_set_state_accepts_only_tokens_as_tokens_so_far(service: LocalService) -> None:
    with Client(service.target) as client, client.session(f"{MODEL}-three", session_id="told") as session:
        session.feed(features=frames(4, 4))
        state = {tensor.name: tensor for tensor in client.sessions.get_state("told")}
        for name, number, most in (("emitted", 7, "6"), ("emitted", -1, "6"), ("num_emitted", -1, "9007199254740992")):
            wrong = np.full(state[name].shape, number, np.int64).tobytes()
            with pytest.raises(InvalidArgumentError, match=f"has {number}, but its numbers must be 0 to {most}"):
                client.sessions.set_state("told", replace(state[name], data=wrong))
        client.sessions.set_state("told", *state.values())


async def test_a_step_batch_returns_what_each_session_emitted(
    service: LocalService, files: dict[str, list[Path]]
) -> None:
    fed = np.stack([frames(12, seed) for seed in range(5)])
    with Client(service.target) as client, client.batch(f"{MODEL}-three") as batch:
        for _ in range(5):
            batch.open()
        loops = [bare(files["three"]) for _ in range(5)]
        for place in range(12):
            step = batch.step(features=fed[:, place])
            expected = [loop.step(one) for loop, one in zip(loops, fed[:, place], strict=True)]
            assert list(step.counts) == [len(tokens) for tokens, _ in expected]
            assert list(step.token_ids) == [token for tokens, _ in expected for token in tokens]
            np.testing.assert_allclose(step.log_probabilities, [p for _, ps in expected for p in ps], atol=1e-5)
        assert sum(len(loop.tokens) for loop in loops) > 20


def test_other_outputs_are_refused(service: LocalService) -> None:
    with Client(service.target) as client, client.session(f"{MODEL}-three") as session:
        for asked in ({"top_k": 3}, {"logits": True}):
            with pytest.raises(InvalidArgumentError, match="which emits tokens"):
                session.feed(features=frames(1, 0), **asked)
        assert session.feed(features=frames(3, 0), outputs=False).outputs == ()
        assert session.position == 3


def test_its_description_says_how_it_emits(service: LocalService) -> None:
    with Client(service.target) as client:
        info = client.model(f"{MODEL}-two")
    assert info.transducer == Transducer(blank_id=0, max_symbols=LIMIT, num_frames=1)
    assert (info.feature_size, info.can_generate, len(info.target_vocabulary)) == (FEATURES, False, 7)


def test_the_command_prints_what_is_emitted(
    service: LocalService, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    fed = frames(50, 5)
    np.save(tmp_path / "frames.npy", fed)
    loop = bare(files["three"])
    emissions(loop, fed)
    found = Shell(service.target).out("stream", f"{MODEL}-three", str(tmp_path / "frames.npy"))
    assert found == "".join(f"<{token}>" for token in loop.tokens) + "\n"


@pytest.mark.parametrize("number", [7, -1])
def test_the_prediction_network_reads_only_valid_tokens(service: LocalService, number: int) -> None:
    with Client(service.target) as client, client.session(f"{MODEL}-two", session_id="read") as session:
        session.feed(features=frames(1, 4))
        (context,) = client.sessions.get_state("read", "context")
        wrong = np.full(context.shape, number, np.int64).tobytes()
        with pytest.raises(
            InvalidArgumentError, match=rf"tensors\[0\].data: 'context' has {number}, but its numbers must be 0 to 6"
        ):
            client.sessions.set_state("read", replace(context, data=wrong))
        client.sessions.set_state("read", context)
        session.feed(features=frames(1, 5))

"""Snapshots, copies, marks and state tensors of sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2 as sp
from carousel.v1 import sessions_pb2_grpc
from examples.local_service import LocalService
from tests.bundles import write_language_model
from tests.end_to_end.wire import Wire, wire
from tests.reference import ReferenceSession
from tests.services import local_service

LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
RESUME = pb.Open(resume=pb.Resume())


@dataclass
class Both:
    """A stream, and the stub of the calls about sessions."""

    stream: Wire
    sessions: sessions_pb2_grpc.SessionsAsyncStub

    async def logits(self, session_id: str, token: int) -> list[float]:
        fed = await self.stream.ask(session_id, feed=pb.Feed(token_ids=[token], outputs=LOGITS))
        assert fed.HasField("fed"), fed
        return list(fed.fed.outputs[0].logits)


@asynccontextmanager
async def both(service: LocalService) -> AsyncIterator[Both]:
    async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
        yield Both(stream, sessions_pb2_grpc.SessionsStub(channel))


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    return raised.value.code(), raised.value.details() or ""


async def test_a_snapshot_makes_the_same_session_again_whatever_it_was_doing(
    shipped_service: LocalService,
) -> None:
    async with both(shipped_service) as it:
        source = pb.Sequence(text="carousel")
        await it.stream.ask("orig", open=pb.Open(model="g2p-en", source=source))
        await it.stream.ask("orig", feed=pb.Feed(tokens=["K"], position=0))
        await it.stream.send("orig", generate=pb.Generate(position=1, decoding=pb.Decoding(max_tokens=2)))
        await it.stream.generated()
        snapshot = await it.sessions.Snapshot(sp.SessionsSnapshotRequest(session_id="orig"))
        assert snapshot.position == 3
        request = sp.SessionsRestoreRequest(snapshot=snapshot.snapshot, session_id="copy")
        restored = (await it.sessions.Restore(request)).session
        assert (restored.session_id, restored.position, restored.attached) == ("copy", 3, False)
        opened = await it.stream.ask("copy", open=RESUME)
        assert opened.position == 3
        for session_id in ("orig", "copy"):
            await it.stream.send(session_id, generate=pb.Generate(position=3))
            tokens, last = await it.stream.generated()
            if session_id == "orig":
                expected = tokens, last.position
            assert (tokens, last.position) == expected
            await it.stream.ask(session_id, close=pb.Close())


@pytest.mark.parametrize("policy", [{}, {"on_disconnect": {"action": pb.DISCONNECT_ACTION_HOLD}}])
async def test_a_generation_continues_in_a_restored_snapshot(
    tiny_service: LocalService, policy: dict[str, Any]
) -> None:
    """The tokens and log-probabilities are the same, also if the session keeps none of its tokens."""
    sampling = pb.Sampling(seed=7, temperature=2.0)
    decoding = pb.Decoding(max_tokens=2000, sampling=sampling, log_probabilities=True, repetition_penalty=1.5)
    async with both(tiny_service) as it:
        stream = it.stream

        async def generated(session_id: str, received: int | None) -> list[tuple[int, float]]:
            generate = pb.Generate(position=2, decoding=decoding, received_position=received)
            await stream.send(session_id, generate=generate)
            tokens: list[tuple[int, float]] = []
            while True:
                response = await stream.read()
                assert response.HasField("generated"), response
                tokens += [(token.id, token.log_probability) for token in response.generated.tokens]
                if response.generated.finish_reason:
                    assert response.position == 2002
                    return tokens
                if session_id == "orig" and not taken:
                    taken.append(await it.sessions.Snapshot(sp.SessionsSnapshotRequest(session_id="orig")))

        taken: list[sp.SessionsSnapshotResponse] = []
        await stream.ask("orig", open=pb.Open(model="tiny-endless", **policy))
        await stream.ask("orig", feed=pb.Feed(token_ids=[5, 6]))
        expected = await generated("orig", None)
        position = taken[0].position
        assert 2 < position < 2002, "it was taken in the midst"
        await it.sessions.Restore(sp.SessionsRestoreRequest(snapshot=taken[0].snapshot, session_id="copy"))
        assert (await stream.ask("copy", open=RESUME)).position == position
        if not policy:
            lost = await stream.ask("copy", generate=pb.Generate(position=2, decoding=decoding))
            assert lost.error.reason == "OUTPUTS_LOST"
            assert lost.error.metadata["first_position"] == str(position)
        assert await generated("copy", position) == expected[position - 2 :]
        for session_id in ("orig", "copy"):
            await stream.ask(session_id, close=pb.Close())


async def test_a_snapshot_of_another_key_or_model_or_that_was_changed_is_refused(
    tiny_service: LocalService, tiny_repository: Path, tmp_path: Path
) -> None:
    write_language_model(tmp_path, model="tiny-endless", bos_id=1, eos_id=None, seed=77)
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    async with both(tiny_service) as it:
        await it.stream.ask("mine", open=pb.Open(model="tiny-endless"))
        theirs = (await it.sessions.Snapshot(sp.SessionsSnapshotRequest(session_id="mine"))).snapshot
    with local_service(tiny_repository, {"snapshot-key-file": key}) as service:
        async with both(service) as it:
            await it.stream.ask("mine", open=pb.Open(model="tiny-endless"))
            data = (await it.sessions.Snapshot(sp.SessionsSnapshotRequest(session_id="mine"))).snapshot

            async def restore(data: bytes, version: int | None = None) -> tuple[grpc.StatusCode, str]:
                return await refusal(it.sessions.Restore(sp.SessionsRestoreRequest(snapshot=data, version=version)))

            code, text = await restore(theirs)
            assert (code, "signed with a different key" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
            code, text = await restore(b"nothing")
            assert (code, "is not a Carousel snapshot" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
            code, text = await restore(data[:-1])
            assert (code, "checksum" in text) == (grpc.StatusCode.DATA_LOSS, True)
            code, text = await restore(data)
            assert (code, "'mine' is in use" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
            code, text = await restore(data, version=9)
            assert (code, "version = 9" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    with local_service(tmp_path, {"snapshot-key-file": key}) as service:
        async with both(service) as it:
            code, text = await refusal(it.sessions.Restore(sp.SessionsRestoreRequest(snapshot=data)))
            assert (code, "made with another bundle" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
            moved = await it.sessions.Restore(sp.SessionsRestoreRequest(snapshot=data, version=1))
            assert moved.session.version == 1


async def test_a_fork_is_independent_of_its_session(tiny_service: LocalService, tiny_repository: Path) -> None:
    async with both(tiny_service) as it:
        await it.stream.ask("trunk", open=pb.Open(model="tiny-endless"))
        await it.logits("trunk", 5)
        fork = (await it.sessions.Fork(sp.SessionsForkRequest(session_id="trunk", fork_session_id="branch"))).session
        assert (fork.session_id, fork.position) == ("branch", 1)
        await it.stream.ask("branch", open=RESUME)
        for session_id, token in (("trunk", 6), ("branch", 7)):
            reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
            reference.step(5)
            assert await it.logits(session_id, token) == reference.step(token).tolist()
        code, text = await refusal(
            it.sessions.Fork(sp.SessionsForkRequest(session_id="trunk", fork_session_id="trunk"))
        )
        assert (code, "is the session itself" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
        for session_id in ("trunk", "branch"):
            await it.stream.ask(session_id, close=pb.Close())


async def test_a_rewind_forgets_later_marks(tiny_service: LocalService, tiny_repository: Path) -> None:
    async with both(tiny_service) as it:
        await it.stream.ask("marked", open=pb.Open(model="tiny-endless"))
        for position, token in enumerate((5, 6, 7)):
            await it.stream.ask("marked", feed=pb.Feed(token_ids=[token], position=position, mark=position < 2))
        info = (await it.sessions.Get(sp.SessionsGetRequest(session_id="marked"))).session
        assert list(info.marks) == [1, 2]
        rewound = (await it.sessions.Rewind(sp.SessionsRewindRequest(session_id="marked", position=1))).session
        assert (rewound.position, list(rewound.marks)) == (1, [1])
        reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
        reference.step(5)
        assert await it.logits("marked", 9) == reference.step(9).tolist()
        code, text = await refusal(it.sessions.Rewind(sp.SessionsRewindRequest(session_id="marked", position=2)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert text == "position = 2: session 'marked' has no mark there; its marks: 1"
        await it.stream.ask("marked", close=pb.Close())


async def test_marks_are_bounded_and_the_oldest_goes(tiny_service: LocalService) -> None:
    async with both(tiny_service) as it:
        await it.stream.ask("many", open=pb.Open(model="tiny-endless"))
        for position in range(12):
            await it.stream.ask("many", feed=pb.Feed(token_ids=[5], position=position, mark=True))
        info = (await it.sessions.Get(sp.SessionsGetRequest(session_id="many"))).session
        assert list(info.marks) == list(range(5, 13))
        await it.stream.ask("many", close=pb.Close())


async def test_state_is_read_and_written_by_name_and_its_type_and_shape_are_checked(
    tiny_service: LocalService,
) -> None:
    async with both(tiny_service) as it:
        for session_id in ("from", "to"):
            await it.stream.ask(session_id, open=pb.Open(model="tiny-endless"))
        for token in (5, 6, 7):
            await it.logits("from", token)
        await it.logits("to", 3)
        state = await it.sessions.GetState(sp.SessionsGetStateRequest(session_id="from"))
        assert state.position == 3
        assert [tensor.name for tensor in state.tensors] == ["hidden", "cell"]
        tensor = state.tensors[0]
        assert len(tensor.data) == 4 * int(np.prod(list(tensor.shape)))
        only = await it.sessions.GetState(sp.SessionsGetStateRequest(session_id="from", names=["cell"]))
        assert list(only.tensors) == [state.tensors[1]]
        written = await it.sessions.SetState(sp.SessionsSetStateRequest(session_id="to", tensors=state.tensors))
        assert written.position == 1
        assert await it.logits("to", 8) == await it.logits("from", 8)
        wrong = sp.StateTensor(name="gate", dtype="float32", shape=tensor.shape, data=tensor.data)
        found = {
            "tensors[0].name: 'gate' is not a state tensor of the model: expected one of hidden, cell": wrong,
            "tensors[0].dtype = 'float64' must be 'float32', the type of hidden": sp.StateTensor(
                name="hidden", dtype="float64", shape=tensor.shape, data=tensor.data
            ),
            f"tensors[0].shape = [3] must be {list(tensor.shape)}, the shape of hidden": sp.StateTensor(
                name="hidden", dtype="float32", shape=[3], data=tensor.data
            ),
            f"tensors[0].data has 4 bytes, but float32{list(tensor.shape)} needs {len(tensor.data)}": sp.StateTensor(
                name="hidden", dtype="float32", shape=tensor.shape, data=b"1234"
            ),
        }
        for expected, given in found.items():
            request = sp.SessionsSetStateRequest(session_id="to", tensors=[given])
            assert await refusal(it.sessions.SetState(request)) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
        for given in (
            sp.StateTensor(name="x" * 100_000),
            sp.StateTensor(name="hidden", dtype="x" * 100_000),
            sp.StateTensor(name="hidden", dtype="float32", shape=[1] * 100_000),
        ):
            request = sp.SessionsSetStateRequest(session_id="to", tensors=[given])
            code, text = await refusal(it.sessions.SetState(request))
            assert (code, len(text) < 400) == (grpc.StatusCode.INVALID_ARGUMENT, True)
            assert text.endswith(("of the model: expected one of hidden, cell", "of hidden"))
        code, text = await refusal(it.sessions.SetState(sp.SessionsSetStateRequest(session_id="to")))
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "tensors is empty: it must have 1 tensor or more")
        for session_id in ("from", "to"):
            await it.stream.ask(session_id, close=pb.Close())


async def test_calls_about_unknown_sessions_are_refused(tiny_service: LocalService) -> None:
    async with both(tiny_service) as it:
        for call in (
            it.sessions.Snapshot(sp.SessionsSnapshotRequest(session_id="nobody")),
            it.sessions.Fork(sp.SessionsForkRequest(session_id="nobody")),
            it.sessions.Rewind(sp.SessionsRewindRequest(session_id="nobody")),
            it.sessions.GetState(sp.SessionsGetStateRequest(session_id="nobody")),
            it.sessions.SetState(sp.SessionsSetStateRequest(session_id="nobody")),
        ):
            code, text = await refusal(call)
            assert code is grpc.StatusCode.NOT_FOUND
            assert "session_id = 'nobody' is unknown" in text

"""Whatever clients send, the server continues, nothing leaks, and other sessions do not change."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from tests.end_to_end.wire import wire
from tests.reference import ReferenceSession
from tests.services import local_service
from tests.waiting import until

NUM_STREAMS = 60
NUM_MESSAGES = 40


def a_message(rng: random.Random) -> pb.StreamRequest:
    """Returns a request with random content, mostly of a valid form."""

    def number() -> int:
        return rng.choice([0, 1, 2, 3, 16, 17, rng.randrange(1 << 32), (1 << 32) - 1])

    ids = [number() for _ in range(rng.choice([0, 1, 1, 2, 300]))]
    outputs = pb.OutputSpec(
        kind=rng.randrange(7),  # type: ignore[arg-type]
        top_k=number(),
        every_position=rng.random() < 0.5,
    )
    decoding = pb.Decoding(
        max_tokens=rng.choice([0, 1, 5, 100, (1 << 32) - 1]),
        log_probabilities=rng.random() < 0.3,
        repetition_penalty=rng.choice([1.0, 0.0, -1.0, float("nan"), float("inf"), 2.0]),
        min_tokens=rng.choice([0, 1, 1000]),
        stop_token_ids=ids[:2],
        stop_tokens=rng.choice([[], ["t3"], ["?"], ["\0"]]),
        beam_search=rng.choice([None, None, pb.BeamSearch(beam_size=number(), num_best=rng.choice([0, 1, 5]))]),
        sampling=rng.choice(
            [None, pb.Sampling(temperature=rng.choice([0.5, 0.0, float("nan")]), top_p=rng.random(), seed=number())]
        ),
    )
    policy = pb.DisconnectPolicy(action=rng.randrange(5))  # type: ignore[arg-type]
    if rng.random() < 0.3:
        policy.duration.FromSeconds(rng.choice([0, 1, -5, 10**9]))
    request = pb.StreamRequest(
        request_id=rng.randrange(1 << 16), session_id=rng.choice(["", "f0", "f1", "f2", "bad id", "x" * 200])
    )
    kind = rng.randrange(9)
    position = rng.choice([None, 0, 1, number()])
    if kind <= 1:
        request.open.CopyFrom(
            pb.Open(
                model=rng.choice(["tiny-lm", "tiny-endless", "tiny-bos", "none", ""]),
                version=rng.choice([0, 1, 9]),
                variant=rng.choice(["", "fp32", "other"]),
                outputs=rng.choice([None, outputs]),
                source=rng.choice([None, pb.Sequence(text="ab"), pb.Sequence()]),
                resume=rng.choice([None, None, None, pb.Resume()]),
                durability=rng.randrange(5),  # type: ignore[arg-type]
                on_disconnect=rng.choice([None, policy]),
                unattended=rng.random() < 0.5,
            )
        )
    elif kind <= 3:
        tokens = ["t4"] if not ids or rng.random() < 0.1 else []
        request.feed.CopyFrom(
            pb.Feed(token_ids=ids, tokens=tokens, position=position, outputs=outputs, mark=rng.random() < 0.3)
        )
    elif kind == 4:
        request.generate.CopyFrom(
            pb.Generate(position=position, decoding=decoding, received_position=rng.choice([None, 0, number()]))
        )
    elif kind == 5:
        targets = [pb.Sequence(ids=pb.TokenIds(ids=ids)) for _ in range(rng.choice([0, 1, 3, 100]))]
        request.score.CopyFrom(pb.Score(position=position, targets=targets, with_end=rng.random() < 0.5))
    elif kind == 6:
        handles = [number() for _ in range(rng.randrange(4))]
        request.step_batch.CopyFrom(
            pb.StepBatch(handles=handles, token_ids=ids, counts=ids[:2], positions=ids[:1], outputs=outputs)
        )
    elif kind == 7:
        rng.choice([request.cancel, request.close]).SetInParent()
    return request


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Returns a message with some bytes changed, cut off or repeated."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if changed:
            at = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[at] = rng.randrange(256)
                case 1:
                    del changed[at:]
                case _:
                    changed[at:at] = changed[at : at + 8]
    return bytes(changed)


async def test_random_messages_affect_no_other_session(tiny_repository: Path) -> None:
    flags = {"max-sessions": 64, "max-slots": 40, "idle-timeout-s": 5, "max-hold-s": 5, "max-keep-s": 5, "hold-s": 1}
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
            await stream.ask("neighbour", open=pb.Open(model="tiny-endless"))
            reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
            raw = channel.stream_stream(
                "/carousel.v1.Inference/Stream",
                request_serializer=lambda data: data,
                response_deserializer=pb.StreamResponse.FromString,
            )

            async def one(seed: int) -> int:
                rng, answers = random.Random(seed), 0
                is_torn = rng.random() < 0.3
                call = raw()
                try:
                    for _ in range(NUM_MESSAGES):
                        data = a_message(rng).SerializeToString()
                        await call.write(mutated(data, rng) if is_torn and rng.random() < 0.2 else data)
                    if rng.random() < 0.5:
                        await call.done_writing()
                        while (answer := await asyncio.wait_for(call.read(), 20)) is not grpc.aio.EOF:
                            assert isinstance(answer, pb.StreamResponse)
                            answers += 1
                except (grpc.RpcError, asyncio.InvalidStateError):
                    pass  # an invalid message ends its stream
                finally:
                    call.cancel()
                return answers

            total = 0
            for begin in range(0, NUM_STREAMS, 12):
                total += sum(await asyncio.gather(*map(one, range(begin, begin + 12))))
                token = begin % 16
                feed = pb.Feed(token_ids=[token], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS))
                fed = await stream.ask("neighbour", feed=feed)
                assert list(fed.fed.outputs[0].logits) == reference.step(token).tolist()
            assert total > 500, "most streams must have been answered"
            sessions: sessions_pb2_grpc.SessionsAsyncStub = sessions_pb2_grpc.SessionsStub(channel)

            async def alone() -> sessions_pb2.SessionsListResponse | None:
                await stream.ask("neighbour", cancel=pb.Cancel())
                nothing = pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)
                await stream.ask("neighbour", feed=pb.Feed(token_ids=[5], outputs=nothing))
                found = await sessions.List(sessions_pb2.SessionsListRequest())
                return found if found.total_count == 1 else None

            listed = await until(alone)  # held sessions expire, and kept sessions leave the memory
            assert [one.session_id for one in listed.sessions] == ["neighbour"]
            # all slots are free again
            stub = inference_pb2_grpc.InferenceStub(channel)
            for _ in range(50):
                request = pb.GenerateRequest(model="tiny-endless", decoding=pb.Decoding(max_tokens=3))
                assert [len(r.generated.tokens) async for r in stub.Generate(request)]
        assert not [line for line in service.log if line["level"] == "error"]


async def test_snapshots_of_any_bytes_are_refused(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
            await stream.ask("whole", open=pb.Open(model="tiny-endless"))
            await stream.ask("whole", feed=pb.Feed(token_ids=[5]))
            sessions: sessions_pb2_grpc.SessionsAsyncStub = sessions_pb2_grpc.SessionsStub(channel)
            whole = (await sessions.Snapshot(sessions_pb2.SessionsSnapshotRequest(session_id="whole"))).snapshot
            rng = random.Random(1)
            codes = set()
            for index in range(300):
                data = mutated(whole, rng) if index % 3 else rng.randbytes(rng.randrange(200))
                if data == whole:
                    continue
                request = sessions_pb2.SessionsRestoreRequest(snapshot=data, session_id=f"any-{index}")
                try:
                    await sessions.Restore(request)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())
                else:
                    raise AssertionError(f"a snapshot with other bytes was taken: {data!r}")
            assert codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS}
        assert not [line for line in service.log if line["level"] == "error"]

"""This version reads what earlier servers stored, and understands what earlier clients send.

The server of 2026-11-24 wrote the records in `fixtures/old_server` before it was killed. They are never regenerated.
`carousel_v1.binpb` is the contract of that day, as a FileDescriptorSet.
"""

from __future__ import annotations

import struct
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2

from carousel.v1 import error_pb2, inference_pb2, models_pb2, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb
from tests.conftest import only
from tests.end_to_end.wire import Wire, wire
from tests.services import local_service
from tests.sessions.stores.test_old_records import write_folder

FIXTURES = Path(__file__).parent / "fixtures"
KEY = b"the key of an old server, 32 byte"[:32]
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
TOP_3 = pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=3)
SAMPLED = pb.Decoding(max_tokens=2000, min_tokens=2000, sampling=pb.Sampling(seed=7), repetition_penalty=1.25)
BEAM = pb.Decoding(max_tokens=9, beam_search=pb.BeamSearch(beam_size=3, num_best=2))
RESUME = pb.Open(resume=pb.Resume())
HOLD = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
OWNED, GONE = 0, 2


def features(*values: float) -> pb.Tensor:
    return pb.Tensor(shape=[len(values), 1], data=struct.pack(f"<{len(values)}f", *values))


async def logits(stream: Wire, session_id: str, *tokens: int, position: int) -> list[float]:
    fed = await stream.ask(session_id, feed=pb.Feed(token_ids=tokens, position=position, outputs=LOGITS))
    assert fed.HasField("fed"), fed
    return list(fed.fed.outputs[-1].logits)


async def reference(stream: Wire, *tokens: int) -> list[float]:
    """Returns the logits of a session of this server after the same tokens."""
    await stream.ask("reference", open=pb.Open(model="pychar-en"))
    found = await logits(stream, "reference", *tokens, position=0)
    await stream.ask("reference", close=pb.Close())
    return found


async def generated(stream: Wire, session_id: str, received: int) -> list[int]:
    """Returns the tokens of a generation after the position `received`."""
    request = pb.Generate(position=1, received_position=received, decoding=SAMPLED)
    await stream.send(session_id, generate=request)
    tokens: list[int] = []
    while True:
        answer = await stream.read()
        assert answer.HasField("generated"), answer
        tokens += [token.id for token in answer.generated.tokens]
        if answer.generated.finish_reason:
            return tokens


async def test_the_sessions_of_an_old_data_folder_continue_bit_for_bit(tmp_path: Path) -> None:
    payloads = {path.name: path.read_bytes() for path in (FIXTURES / "old_server").iterdir()}
    write_folder(
        tmp_path / "sessions",
        {name: (GONE if name == "closed" else OWNED, 1, payload) for name, payload in payloads.items()},
    )
    (tmp_path / "key").write_bytes(KEY)
    flags = {"store": "lmdb", "data-folder": tmp_path, "snapshot-key-file": tmp_path / "key"}
    models = only(tmp_path / "models", "co2-forecast", "g2p-en", "pychar-en")
    with local_service(models, flags) as service:
        async with wire(service.target) as stream:
            opened = {name: await stream.ask(name, open=RESUME) for name in payloads}
            positions = {name: one.position for name, one in opened.items() if one.HasField("opened")}
            assert positions == {"strict": 5, "spilled": 2, "searched": 3, "forecast": 2, "generating": 9}
            assert opened["closed"].error.reason == "SESSION_NOT_FOUND"
            assert "was closed by a client at position 2" in opened["closed"].error.message

            again = await stream.ask("strict", feed=pb.Feed(token_ids=[8, 9], position=3, outputs=TOP_3))
            assert (again.fed.replayed, len(again.fed.outputs[-1].tokens)) == (True, 3)
            assert await logits(stream, "strict", 20, position=5) == await reference(stream, 5, 6, 7, 8, 9, 20)
            async with grpc.aio.insecure_channel(service.target) as channel:
                stub = sessions_pb2_grpc.SessionsStub(channel)
                await stub.Rewind(sessions_pb2.SessionsRewindRequest(session_id="strict", position=3))
            assert await logits(stream, "strict", 21, position=3) == await reference(stream, 5, 6, 7, 21)
            assert await logits(stream, "spilled", 12, position=2) == await reference(stream, 10, 11, 12)

            found = await stream.ask("searched", generate=pb.Generate(position=0, decoding=BEAM))
            await stream.ask("anew", open=pb.Open(model="g2p-en", source=pb.Sequence(text="old")))
            anew = await stream.ask("anew", generate=pb.Generate(position=0, decoding=BEAM))
            assert found.generated == anew.generated

            fed = await stream.ask("forecast", feed=pb.Feed(features=features(3), position=2))
            source = pb.Sequence(features=features(370, 371, 372))
            await stream.ask("again", open=pb.Open(model="co2-forecast", source=source))
            alone = await stream.ask("again", feed=pb.Feed(features=features(1, 2, 3), position=0))
            assert fed.fed.outputs[-1].values == alone.fed.outputs[-1].values

            await stream.ask("whole", open=pb.Open(model="pychar-en", on_disconnect=HOLD))
            await stream.ask("whole", feed=pb.Feed(token_ids=[5], position=0))
            whole = await generated(stream, "whole", received=1)
            assert await generated(stream, "generating", received=4) == whole[3:]


def test_everything_that_an_old_client_uses_is_in_the_contract() -> None:
    old = descriptor_pb2.FileDescriptorSet.FromString((FIXTURES / "carousel_v1.binpb").read_bytes())
    new = {}
    for module in (error_pb2, inference_pb2, models_pb2, sessions_pb2):
        proto = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(proto)
        new[proto.name] = proto
    assert {file.name for file in old.file} <= set(new)
    for file in old.file:
        assert facts(file) <= facts(new[file.name])


def facts(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
    """Returns what a client depends on: the names, numbers and types of fields, values and calls."""
    found: set[tuple[object, ...]] = set()
    for message in file.message_type:
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            found.add((message.name, field.name, field.number, field.type, field.label, field.type_name, oneof))
    for enum in file.enum_type:
        found |= {(enum.name, value.name, value.number) for value in enum.value}
    for service in file.service:
        found |= {
            (service.name, call.name, call.input_type, call.output_type, call.client_streaming, call.server_streaming)
            for call in service.method
        }
    return found

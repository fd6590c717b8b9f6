"""Stored sessions that are encrypted: the folder shows no tokens, keys can change, and unreadable records are not
lost."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import grpc

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from tests.end_to_end.wire import Wire, wire
from tests.services import local_service

OLD, NEW = (base64.b64encode(bytes([one]) * 32).decode() for one in (7, 8))
RESUME = pb.Open(resume=pb.Resume())
STRICT = pb.Open(
    model="tiny-endless",
    durability=pb.DURABILITY_STRICT,
    on_disconnect=pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP),
)
TOKENS = [5, 6, 7, 8, 9, 6]
MAGIC = b"CRSE"


def settings(folder: Path, *lines: str) -> dict[str, object]:
    """Returns the flags of a server. lines: its keys; without keys it does not encrypt."""
    flags: dict[str, object] = {"store": "lmdb", "data-folder": folder / "data", "log-level": "debug"}
    if lines:
        (folder / "keys").write_text("\n".join(lines))
        (folder / "keys").chmod(0o600)
        flags["storage-key-file"] = folder / "keys"
    return flags


async def feed(stream: Wire, position: int, *tokens: int) -> None:
    fed = await stream.ask("kept", feed=pb.Feed(token_ids=tokens, position=position))
    assert fed.HasField("fed"), fed


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file())


def warnings(service: LocalService) -> list[tuple[object, object]]:
    """Returns the event and the path of each warning that a server logged about a file."""
    return [(line["event"], line["path"]) for line in service.log if line["level"] == "warning" and "path" in line]


async def test_a_data_folder_shows_nothing_of_a_session_while_its_snapshots_stay_portable(
    tiny_repository: Path, tmp_path: Path
) -> None:
    snapshots = {}
    for name, lines in (("plain", ()), ("encrypted", (f"2026 {NEW}",))):
        (tmp_path / name).mkdir()
        with local_service(tiny_repository, settings(tmp_path / name, *lines)) as service:
            async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
                await stream.ask("kept", open=STRICT)
                await feed(stream, 0, *TOKENS)
                request = sessions_pb2.SessionsSnapshotRequest(session_id="kept")
                snapshots[name] = (await sessions_pb2_grpc.SessionsStub(channel).Snapshot(request)).snapshot
            assert NEW not in "".join(map(str, service.log))
    shows = {name: stored(tmp_path / name) for name in snapshots}
    for sign in (b"tiny-endless", b"CRSL", struct.pack("6B", *TOKENS)):
        assert sign in shows["plain"]
        assert sign not in shows["encrypted"]
    assert MAGIC in shows["encrypted"]
    assert all(snapshot.startswith(b"CRSL") for snapshot in snapshots.values())


async def test_keys_change_and_a_folder_without_encryption_becomes_encrypted(
    tiny_repository: Path, tmp_path: Path
) -> None:
    """Each server resumes what the previous server stored. A record is encrypted with the first key when it is
    written."""
    position = 0
    for lines in ((), (f"2025 {OLD}",), (f"2026 {NEW}", f"2025 {OLD}"), (f"2026 {NEW}",)):
        with local_service(tiny_repository, settings(tmp_path, *lines)) as service:
            async with wire(service.target) as stream:
                opened = await stream.ask("kept", open=RESUME if position else STRICT)
                assert opened.position == position, opened
                await feed(stream, position, 5, 6)
                position += 2


async def test_a_record_of_a_key_that_is_missing_is_refused_by_its_id_and_not_lost(
    tiny_repository: Path, tmp_path: Path
) -> None:
    with local_service(tiny_repository, settings(tmp_path, f"2025 {OLD}")) as service:
        async with wire(service.target) as stream:
            await stream.ask("kept", open=STRICT)
            await feed(stream, 0, *TOKENS)
    for lines, found in (
        ((), "is encrypted with the key '2025', which this server does not have"),
        ((f"2026 {NEW}",), "is encrypted with the key '2025', which this server does not have"),
        ((f"2025 {NEW}",), "cannot be decrypted with the key '2025'"),
    ):
        with local_service(tiny_repository, settings(tmp_path, *lines)) as service:
            async with wire(service.target) as stream:
                refused = await stream.ask("kept", open=RESUME)
        assert refused.error.reason == "SNAPSHOT_KEY"
        assert found in refused.error.message
    with local_service(tiny_repository, settings(tmp_path, f"2026 {NEW}", f"2025 {OLD}")) as service:
        async with wire(service.target) as stream:
            assert (await stream.ask("kept", open=RESUME)).position == len(TOKENS)


async def test_a_session_signed_with_a_lost_key_is_refused_after_a_warning_until_the_key_is_back(
    tiny_repository: Path, tmp_path: Path
) -> None:
    key = tmp_path / "data" / "snapshot.key"
    with local_service(tiny_repository, settings(tmp_path)) as service:
        async with wire(service.target) as stream:
            await stream.ask("kept", open=STRICT)
            await feed(stream, 0, *TOKENS)
        assert warnings(service) == []
    kept = key.read_bytes()
    key.unlink()
    with local_service(tiny_repository, settings(tmp_path)) as service:
        async with wire(service.target) as stream:
            refused = await stream.ask("kept", open=RESUME)
        assert warnings(service) == [("snapshot_key.missing", str(key))]
    assert (refused.error.reason, refused.error.field) == ("SNAPSHOT_KEY", "session_id")
    key.write_bytes(kept)
    with local_service(tiny_repository, settings(tmp_path)) as service:
        async with wire(service.target) as stream:
            assert (await stream.ask("kept", open=RESUME)).position == len(TOKENS)
        assert warnings(service) == []


async def test_spilled_sessions_are_encrypted_and_restored(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {**settings(tmp_path, f"2026 {NEW}"), "max-slots": 1}
    with local_service(tiny_repository, flags) as service:
        async with wire(service.target) as stream:
            await stream.ask("one", open=pb.Open(model="tiny-endless"))
            for at, name in enumerate(("one", "two", "one", "two")):
                if at == 1:
                    await stream.ask("two", open=pb.Open(model="tiny-endless"))
                fed = await stream.ask(name, feed=pb.Feed(token_ids=[5], position=at // 2))
                assert fed.position == at // 2 + 1, fed
        assert MAGIC in stored(tmp_path)

"""A data folder that an earlier server wrote is read: its records have this layout for ever."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import lmdb

from service.sessions.persistence import Durability
from service.sessions.snapshot import Codec
from service.sessions.stores.base import Claimed, Gone
from service.sessions.stores.lmdb import LmdbStore
from tests.sessions.test_snapshot_format import FIXTURES, KEY

LAYOUT = struct.Struct("<HBBQd16s")
"""Format 1, standing (0 owned, 1 free, 2 gone), whether it has a payload, epoch, Unix seconds of its expiry, owner."""


def write_folder(folder: Path, records: dict[str, tuple[int, int, bytes | None]]) -> None:
    """Writes records as the first server did. records: standing, epoch and payload by session."""
    expires_at = time.time() + 1000.0
    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=1 << 24, max_dbs=3)
    by_id, expiries = environment.open_db(b"records"), environment.open_db(b"expiries")
    with environment.begin(write=True) as transaction:
        for session_id, (standing, epoch, payload) in records.items():
            key = session_id.encode()
            head = LAYOUT.pack(1, standing, payload is not None, epoch, expires_at, b"a dead server...")
            transaction.put(key, head + (payload or b""), db=by_id)
            transaction.put(struct.pack(">Q", round(expires_at * 1000)) + key, b"", db=expiries)
    environment.close()


def test_the_records_of_an_old_folder_are_claimed_and_read(tmp_path: Path) -> None:
    snapshot = (FIXTURES / "fed-1.snapshot").read_bytes()
    tombstone = b'["client",3,1700000000.0]'
    folder = tmp_path / "sessions"
    write_folder(folder, {"old": (0, 4, snapshot), "free": (1, 2, snapshot), "gone": (2, 7, tombstone)})
    store = LmdbStore(folder)
    try:
        claimed = store.claim("old")
        assert isinstance(claimed, Claimed)
        assert claimed.epoch == 5
        assert claimed.payload is not None
        image = Codec(KEY).decode(claimed.payload)
        assert (image.lane.position, image.policy.durability) == (8, Durability.STRICT)
        assert store.claim("free") == Claimed(3, snapshot)
        assert store.claim("gone") == Gone(tombstone)
        assert [store.has(name) for name in ("old", "free", "gone", "never")] == [True, True, False, False]
    finally:
        store.close()

"""This version reads records of earlier versions, in a data folder and in Redis, and writes records that they can read.

The layouts never change. In Redis both versions run side by side while replicas are replaced one by one.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

import lmdb
import redis as redis_client

from service.sessions.persistence import Durability
from service.sessions.snapshot import Codec
from service.sessions.stores.base import Claimed, Gone, Held, Ownership, Write
from service.sessions.stores.lmdb import LmdbStore
from service.sessions.stores.redis import RedisStore
from tests.services import redis_server
from tests.sessions.stores.claims import claim, mine
from tests.sessions.test_snapshot_format import FIXTURES, KEY

LAYOUT = struct.Struct("<HBBQd16s")
"""Format 1, ownership (0 owned, 1 free, 2 gone), whether there is a payload, epoch, Unix seconds of the expiry,
owner."""


def write_folder(folder: Path, records: dict[str, tuple[int, int, bytes | None]]) -> None:
    """Writes records as the first version did. records: ownership, epoch and payload by session."""
    expires_at = time.time() + 1000.0
    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=1 << 24, max_dbs=3)
    by_id, expiries = environment.open_db(b"records"), environment.open_db(b"expiries")
    with environment.begin(write=True) as transaction:
        for session_id, (ownership, epoch, payload) in records.items():
            key = session_id.encode()
            head = LAYOUT.pack(1, ownership, payload is not None, epoch, expires_at, b"a dead server...")
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
        claimed = claim(store, "old")
        assert isinstance(claimed, Claimed)
        assert claimed.epoch == 5
        assert claimed.payload is not None
        image = Codec(KEY).decode(claimed.payload)
        assert (image.lane.position, image.policy.durability) == (8, Durability.STRICT)
        assert claim(store, "free") == mine(3, snapshot)
        assert claim(store, "gone") == Gone(tombstone)
        assert [store.has(name) for name in ("old", "free", "gone", "never")] == [True, True, False, False]
    finally:
        store.close()


def test_a_server_beside_an_old_one_on_a_redis_keeps_to_its_layout(tmp_path: Path) -> None:
    """`carousel:s:ID` is a hash of epoch, owner, ownership and payload; `o:OWNER` exists while its owner lives;
    `w:OWNER` is the set of records that other servers want from it."""
    snapshot = (FIXTURES / "fed-1.snapshot").read_bytes()
    tombstone = b'["client",3,1700000000.0]'
    with redis_server(tmp_path) as server:
        client = redis_client.Redis.from_url(server.url)
        client.set("carousel:o:old", b"", px=60_000)
        for name, owner, ownership, payload in (
            ("theirs", "old", "owned", snapshot),
            ("dead", "gone", "owned", snapshot),
            ("free", "gone", "free", snapshot),
            ("ended", "old", "gone", tombstone),
        ):
            client.hset(f"carousel:s:{name}", mapping={"e": 4, "o": owner, "k": ownership, "p": payload})
            client.pexpire(f"carousel:s:{name}", 60_000)
        store = RedisStore(server.url)
        try:
            assert claim(store, "theirs") == Held("old", snapshot)
            assert store.ask("old", ["theirs", "free"]) == {"free"}
            assert client.smembers("carousel:w:old") == {b"theirs"}
            assert claim(store, "dead") == mine(5, snapshot)
            assert claim(store, "free") == mine(5, snapshot)
            assert claim(store, "ended") == Gone(tombstone)
            later = 60.0
            epoch = store.reserve("ours", later)
            assert (epoch, client.exists(f"carousel:o:{store.owner}")) == (1, 1)
            store.write([Write("ours", 1, snapshot, later)])
            ours = {b"e": b"1", b"o": store.owner.encode(), b"k": b"owned", b"p": snapshot}
            assert client.hgetall("carousel:s:ours") == ours
            client.sadd(f"carousel:w:{store.owner}", "ours")
            assert store.heartbeat().wanted == ["ours"]
            store.write([Write("ours", 1, None, later, Ownership.FREE)])
            assert client.hgetall("carousel:s:ours") == ours | {b"k": b"free"}
            store.write([Write("dead", 5, tombstone, later, Ownership.GONE)])
            assert client.hmget("carousel:s:dead", "e", "k", "p") == [b"5", b"gone", tombstone]
        finally:
            store.close()
            client.close()

"""Every store keeps records and their owners as the memory store does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis import Redis

from service.sessions.stores.base import (
    Claimed,
    CorruptRecordError,
    Gone,
    Held,
    Ownership,
    StateStore,
    StoreError,
    Write,
    Written,
    id_of,
    if_idle,
)
from service.sessions.stores.lmdb import LmdbStore
from service.sessions.stores.memory import MemoryStore, SharedRecords
from service.sessions.stores.open_store import signing_key
from service.sessions.stores.redis import RedisStore
from service.sessions.stores.redis_address import check_reachable
from tests.services import RedisServer, redis_server
from tests.sessions.stores.claims import claim, mine
from tests.sessions.stores.torn import tear
from tests.waiting import wait_until

LATER = 3600.0
QUICK_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where stores write whose tests kill nothing: a folder of Linux on which a sync costs nothing."""


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """Yields a Redis that all tests of this run share. Each test uses its own ids."""
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as folder, redis_server(Path(folder)) as server:
        yield server


@pytest.fixture(params=["memory", "lmdb", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    made: StateStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "lmdb":
        made = LmdbStore(tmp_path / "lmdb")
    else:
        made = RedisStore(request.getfixturevalue("redis").url, prefix=f"{tmp_path}:")
    yield made
    made.close()


@pytest.fixture(params=["memory", "redis"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[StateStore, StateStore]]:
    """Yields the stores of two servers over the same data."""
    one: StateStore
    other: StateStore
    if request.param == "memory":
        shared = SharedRecords()
        one, other = MemoryStore(shared), MemoryStore(shared)
    else:
        url = request.getfixturevalue("redis").url
        one, other = (RedisStore(url, prefix=f"{tmp_path}:") for _ in range(2))
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def end_lease(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[StateStore], object]:
    """Ends the lease of a store's process, as if the process was killed or disconnected."""

    def end(store: StateStore) -> None:
        if isinstance(store, MemoryStore):
            store.close()
            return
        with Redis.from_url(request.getfixturevalue("redis").url) as client:
            assert client.delete(f"{tmp_path}:o:{store.owner}") == 1

    return end


def write(session_id: str, epoch: int, payload: bytes | None, ownership: Ownership = Ownership.OWNED) -> Write:
    return Write(session_id, epoch, payload, LATER, ownership)


def test_what_was_written_is_there_and_each_claim_of_a_free_record_has_a_greater_epoch(store: StateStore) -> None:
    assert claim(store, "a") is None
    assert store.write([write("a", 1, b"one", Ownership.FREE), write("b", 1, b"\0\xff")]).refused == set()
    assert claim(store, "a") == mine(2, b"one")
    assert store.write([write("a", 2, None, Ownership.FREE)]).refused == set(), "without a payload the record's stays"
    assert claim(store, "a") == mine(3, b"one")
    assert claim(store, "a") == mine(3, b"one"), "it is the caller's already"
    assert claim(store, "b") == mine(1, b"\0\xff")


def test_a_record_whose_claim_was_not_answered_is_released(store: StateStore) -> None:
    store.reserve("never written", LATER)
    store.write([write("written", 1, b"one", Ownership.FREE), write("ended", 1, b"how", Ownership.GONE)])
    claim(store, "written")
    for session_id in ("never written", "written", "ended", "nobody's"):
        store.undo_claim(session_id)
    assert claim(store, "never written") is None
    assert claim(store, "written") == mine(3, b"one")
    assert claim(store, "ended") == Gone(b"how")
    assert claim(store, "nobody's") is None


def test_a_write_under_an_older_epoch_is_refused_and_harms_no_other_of_its_batch(store: StateStore) -> None:
    store.write([write("a", 1, b"one", Ownership.FREE)])
    claim(store, "a")
    assert store.write([write("a", 1, b"late"), write("b", 1, b"fresh"), write("c", 2, b"again")]).refused == {"a"}
    assert claim(store, "a") == mine(2, b"one")
    assert claim(store, "b") == mine(1, b"fresh")
    assert claim(store, "c") == mine(2, b"again"), "nobody else has it: its time was over, or the store lost it"


def test_an_id_is_reserved_once_and_again_when_its_session_is_gone(store: StateStore) -> None:
    assert store.reserve("a", LATER) == 1
    assert store.reserve("a", LATER) is None
    assert claim(store, "a") == mine(1, None)
    store.write([write("a", 1, b"how", Ownership.GONE)])
    assert claim(store, "a") == Gone(b"how")
    assert store.reserve("a", LATER) == 2
    assert claim(store, "a") == mine(2, None)


def test_a_write_that_has_no_payload_makes_no_record_and_tells_that_there_is_none(store: StateStore) -> None:
    """Otherwise its own server would believe the session stored, and every other server would lose it."""
    written = store.write([write("a", 1, None), write("b", 1, b"state")])
    assert (written.refused, written.missing) == (set(), {"a"})
    assert claim(store, "a") is None
    written = store.write([write("a", 1, b"state"), write("b", 1, None)])
    assert (written.refused, written.missing) == (set(), set())
    assert claim(store, "a") == mine(1, b"state")


def test_a_write_that_may_make_no_record_changes_one_that_is_there(store: StateStore) -> None:
    late = Write("a", 1, b"late", LATER, Ownership.FREE, makes=False)
    assert store.write([late]) == Written(set(), {"a"})
    assert claim(store, "a") is None
    store.write([write("a", 1, b"state")])
    assert store.write([late]) == Written(set(), set())
    assert claim(store, "a") == mine(2, b"late")


def test_no_clock_decides_how_long_a_record_lasts(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for hours in (-25, 25):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        store.write([Write(f"s{hours}", 1, b"state", 60.0)])
        assert claim(store, f"s{hours}") == mine(1, b"state")
    monkeypatch.undo()
    assert claim(store, "s-25") == mine(1, b"state")


def test_an_ended_record_stays_ended_under_its_epoch(store: StateStore) -> None:
    """A server that hands over a session late, after a client has closed it, does not bring it back."""
    store.write([write("a", 1, b"state"), write("b", 1, b"state")])
    store.write([write("a", 1, b"how", Ownership.GONE)])
    late = [write("a", 1, None, Ownership.FREE), write("b", 1, None, Ownership.FREE)]
    assert store.write(late).refused == {"a"}
    assert store.write([write("a", 1, b"late")]).refused == {"a"}
    assert claim(store, "a") == Gone(b"how")
    assert store.write([write("a", 1, b"again", Ownership.GONE)]).refused == set()
    assert claim(store, "a") == Gone(b"again")


def test_a_record_vanishes_when_its_time_is_over(store: StateStore) -> None:
    store.write([Write("a", 1, b"short", 0.05), write("b", 1, b"long")])
    assert store.has("a")
    wait_until(lambda: not store.has("a"))
    store.sweep(10)
    assert claim(store, "a") is None
    assert claim(store, "b") == mine(1, b"long")
    assert store.reserve("a", LATER) == 1


def test_a_record_is_there_until_its_session_is_gone_and_looking_changes_nothing(store: StateStore) -> None:
    assert not store.has("a")
    store.write([write("a", 1, b"first")])
    assert store.has("a")
    store.write([write("a", 1, None, Ownership.FREE)])
    assert store.has("a")
    store.write([write("a", 1, b"how", Ownership.GONE)])
    assert not store.has("a")
    assert claim(store, "a") == Gone(b"how")


def test_ids_are_listed_by_prefix_without_ended_sessions(store: StateStore) -> None:
    for name in ("a*/one", "a*/two", "a*/gone", "a/three", "ab/four", "five"):
        store.reserve(name, LATER)
    store.write([Write("a*/two", 1, b"x", LATER), Write("a*/gone", 1, b"how", LATER, Ownership.GONE)])
    assert store.ids("a*/") == ["a*/one", "a*/two"]
    assert store.ids("") == ["a*/one", "a*/two", "a/three", "ab/four", "five"]
    assert store.ids("b") == []


def test_a_record_that_was_claimed_does_not_expire_before_its_owner_has_written_it(store: StateStore) -> None:
    assert store.reserve("s", LATER) == 1
    store.write([Write("s", 1, b"state", 0.05, Ownership.FREE)])
    assert isinstance(claim(store, "s"), Claimed)
    store.write([Write("of the same time", 1, b"state", 0.05)])
    wait_until(lambda: not store.has("of the same time"))
    assert store.has("s")
    assert store.write([write("s", 2, b"later")]).refused == set()


def test_an_id_that_was_reserved_and_never_written_is_free_once_its_owner_is_gone(
    pair: tuple[StateStore, StateStore], end_lease: Callable[[StateStore], object]
) -> None:
    """A server was killed after it reserved an id and before it freed it. Its late writes are refused."""
    one, other = pair
    assert one.reserve("never written", LATER) == 1
    assert one.reserve("written", LATER) == 1
    one.write([write("written", 1, b"state")])
    assert other.has("never written")
    assert other.reserve("never written", LATER) is None, "its owner is there"
    end_lease(one)
    assert not other.has("never written")
    assert other.reserve("never written", LATER) == 2
    assert other.has("written")
    assert other.reserve("written", LATER) is None
    assert one.write([write("never written", 1, b"late")]).refused == {"never written"}


@pytest.mark.parametrize("how", ["reserved", "claimed"])
def test_requests_for_a_record_before_its_claim_are_forgotten(pair: tuple[StateStore, StateStore], how: str) -> None:
    one, other = pair
    assert one.reserve("s", LATER) == 1
    one.write([write("s", 1, b"state")])
    assert isinstance(claim(other, "s"), Held)
    assert other.ask(one.owner, ["s"]) == set()
    one.write([write("s", 1, None, Ownership.GONE if how == "reserved" else Ownership.FREE)])
    if how == "reserved":
        assert one.reserve("s", LATER) == 2
    else:
        assert isinstance(claim(one, "s"), Claimed)
    assert one.heartbeat().wanted == []
    assert isinstance(claim(other, "s"), Held)
    assert other.ask(one.owner, ["s"]) == set()
    assert one.heartbeat().wanted == ["s"]


def test_a_record_with_a_lifetime_of_zero_does_not_exist(store: StateStore) -> None:
    """This is how a server frees a reservation."""
    assert store.reserve("a", LATER) == 1
    store.write([Write("a", 1, b"{}", 0.0, Ownership.GONE)])
    assert not store.has("a")
    assert claim(store, "a") is None
    assert store.reserve("a", LATER) == 1


def test_a_record_that_is_set_aside_does_not_exist(store: StateStore) -> None:
    store.write([write("a", 1, b"torn"), write("b", 1, b"whole")])
    store.set_aside("a")
    assert claim(store, "a") is None
    assert claim(store, "b") == mine(1, b"whole")


def test_a_live_owner_is_asked_for_a_record_and_releases_it(pair: tuple[StateStore, StateStore]) -> None:
    one, other = pair
    one.write([write("a", 1, b"mine"), write("b", 1, b"mine")])
    assert claim(other, "a") == Held(one.owner, b"mine")
    assert one.heartbeat().wanted == [], "who has looked at a record does not want it yet"
    assert other.ask(one.owner, ["a", "b"]) == set()
    assert other.ask(one.owner, ["a", "never"]) == {"never"}
    assert one.heartbeat().wanted == ["a", "b"]
    assert one.heartbeat().wanted == []
    assert one.write([write("a", 1, b"yours", Ownership.FREE)]).refused == set()
    assert other.ask(one.owner, ["a", "b"]) == {"a"}
    assert claim(other, "a") == mine(2, b"yours")
    assert one.write([write("a", 1, b"too late")]).refused == {"a"}
    assert isinstance(claim(one, "a"), Held)


def test_an_owner_learns_which_sessions_are_wanted_only_if_idle(pair: tuple[StateStore, StateStore]) -> None:
    one, other = pair
    one.write([write("a", 1, b"mine"), write("b", 1, b"mine")])
    asked = [if_idle("a"), "b", if_idle("never")]
    assert other.ask(one.owner, asked) == {if_idle("never")}
    wanted = one.heartbeat().wanted
    assert sorted(wanted) == sorted([if_idle("a"), "b"])
    assert sorted(map(id_of, wanted)) == ["a", "b"]
    assert other.ask(one.owner, [if_idle("a")]) == set()
    one.write([write("a", 1, None, Ownership.FREE)])
    assert other.ask(one.owner, [if_idle("a")]) == {if_idle("a")}
    assert isinstance(claim(one, "a"), Claimed)
    assert one.heartbeat().wanted == [], "what was wanted before it was claimed does not count"


def test_records_of_a_dead_owner_may_be_claimed(pair: tuple[StateStore, StateStore]) -> None:
    one, other = pair
    one.write([write("a", 1, b"left")])
    one.close()
    assert other.ask(one.owner, ["a", "b"]) == {"a", "b"}
    assert claim(other, "a") == mine(2, b"left")


def test_an_owner_without_heartbeats_loses_its_records(redis: RedisServer, tmp_path: Path) -> None:
    one = RedisStore(redis.url, lease_s=0.3, prefix=f"{tmp_path}:")
    other = RedisStore(redis.url, prefix=f"{tmp_path}:")
    one.write([write("a", 1, b"left")])
    assert isinstance(claim(other, "a"), Held)
    wait_until(lambda: not isinstance(claim(other, "a"), Held))
    assert claim(other, "a") == mine(2, b"left")
    one.heartbeat()
    assert one.write([write("a", 1, b"a ghost's")]).refused == {"a"}
    one.close()
    other.close()


@pytest.mark.parametrize("how", ["write", "reserve", "claim"])
def test_a_claim_or_a_new_record_in_an_emptied_redis_counts_as_a_heartbeat(tmp_path: Path, how: str) -> None:
    """Otherwise another server could claim the record before the next heartbeat, and both would have the session."""
    with redis_server(tmp_path) as server:
        one, two, three = (RedisStore(server.url) for _ in range(3))
        before = one.heartbeat().term
        Redis.from_url(server.url).flushall()
        if how == "write":
            one.write([write("a", 1, b"state")])
        elif how == "reserve":
            one.reserve("a", LATER)
        else:
            two.write([write("a", 1, b"state", Ownership.FREE)])
            assert claim(one, "a") == mine(2, b"state")
        assert isinstance(claim(three, "a"), Held)
        assert one.heartbeat().term != before, "it may have lost something"
        for store in (one, two, three):
            store.close()


def let_pass(server: RedisServer, seconds: float) -> None:
    """Moves into the past what a Redis has recorded, and lets its keys expire sooner, as if time had passed."""
    passed = round(seconds * 1000)
    with Redis.from_url(server.url, decode_responses=True) as client:
        for key in client.scan_iter():
            left = client.pttl(key)
            if left > 0:
                client.pexpire(key, max(0, left - passed))
            if client.type(key) == "hash":
                times = {
                    field: [int(number) - passed for number in text.split()]
                    for field, text in client.hgetall(key).items()
                }
                client.hset(key, mapping={field: f"{begin} {end}" for field, (begin, end) in times.items()})


def test_a_heartbeat_returns_how_long_only_others_were_connected(tmp_path: Path) -> None:
    """During that time, other servers may have claimed records of a process that counted as dead."""
    with redis_server(tmp_path) as server:
        one, two = (RedisStore(server.url, lease_s=100.0) for _ in range(2))
        assert one.heartbeat().rivals_s == 0.0
        for _ in range(7):
            let_pass(server, 25.0)  # the lease of `one` ends meanwhile
            two.heartbeat()
        assert one.heartbeat().rivals_s == pytest.approx(75.0, abs=10.0), "from the end of its lease until now"
        assert two.heartbeat().rivals_s == 0.0, "it was never gone"
        let_pass(server, 175.0)  # both leases end meanwhile
        assert two.heartbeat().rivals_s < 10.0
        assert one.heartbeat().rivals_s < 10.0, "nobody was there, for as long as the store was away"
        for store in (one, two):
            store.close()


def test_redis_may_go_away_and_come_back(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        store = RedisStore(server.url, timeout_s=0.5)
        store.write([write("a", 1, b"before")])
        server.stop()
        for call in (store.heartbeat, lambda: claim(store, "a"), lambda: store.write([write("a", 1, b"x")])):
            with pytest.raises(StoreError, match="fails: "):
                call()
        server.start()
        store.heartbeat()
        assert store.write([write("a", 1, b"after")]).refused == set()
        assert claim(store, "a") == mine(1, b"after")
        store.close()


def test_an_unreachable_redis_is_reported_without_its_password() -> None:
    with pytest.raises(StoreError, match=r"redis://127.0.0.1:1/0") as raised:
        RedisStore("redis://user:hush@127.0.0.1:1/0")
    assert "hush" not in str(raised.value)


def test_the_embedded_store_grows_past_its_first_size(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, initial_bytes=1 << 20)
    payload = bytes(2000)
    for begin in range(0, 12_000, 1000):
        assert not store.write([write(str(index), 1, payload) for index in range(begin, begin + 1000)]).refused
    assert claim(store, "11999") == mine(1, payload)
    store.close()


def test_a_full_embedded_store_loses_nothing_that_it_has_taken(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, initial_bytes=1 << 20, max_bytes=1 << 21)
    payload, taken = bytes(20_000), 0
    with suppress(StoreError):
        while taken < 10_000:
            store.write([write(str(taken), 1, payload)])
            taken += 1
    assert 20 < taken < 10_000
    with pytest.raises(StoreError, match="full"):
        store.write([write(str(taken), 1, payload)])
    store.close()
    store = LmdbStore(tmp_path)
    assert all(claim(store, str(index)) == mine(2, payload) for index in range(taken))
    assert claim(store, str(taken)) is None
    store.close()


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    message = f"{tmp_path} is in use by another process: .* by --data-folder, or .* by --store memory"
    with pytest.raises(StoreError, match=message):
        LmdbStore(tmp_path)
    store.close()
    LmdbStore(tmp_path).close()


def test_a_torn_record_is_reported_and_set_aside(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.write([write("a", 1, b"one"), write("b", 1, b"two")])
    store.close()
    tear(tmp_path, "a", lambda record: b"?")
    store = LmdbStore(tmp_path)
    with pytest.raises(CorruptRecordError, match="'a' cannot be read"):
        claim(store, "a")
    assert store.write([write("a", 1, b"over it")]).refused == {"a"}
    store.set_aside("a")
    assert claim(store, "a") is None
    assert claim(store, "b") == mine(2, b"two")
    store.close()


def test_what_was_acknowledged_survives_the_death_of_the_process(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from service.sessions.stores.base import Write
from service.sessions.stores.lmdb import LmdbStore
store = LmdbStore(Path({str(tmp_path)!r}))
store.write([Write(str(index), 1, str(index).encode(), {LATER}) for index in range(500)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    store = LmdbStore(tmp_path)
    assert all(claim(store, str(index)) == mine(2, str(index).encode()) for index in range(500))
    store.close()


def test_a_key_is_made_once_and_a_given_one_is_checked(tmp_path: Path) -> None:
    made = signing_key("lmdb", key_file=None, data_folder=tmp_path / "data")
    assert len(made) == 32
    assert signing_key("lmdb", key_file=None, data_folder=tmp_path / "data") == made
    assert (tmp_path / "data" / "snapshot.key").stat().st_mode & 0o077 == 0
    short = tmp_path / "short"
    short.write_bytes(b"short")
    with pytest.raises(StoreError, match="has 5 bytes, it must have 16 or more"):
        signing_key("redis", key_file=short, data_folder=tmp_path)
    with pytest.raises(StoreError, match="needs snapshot_key_file"):
        signing_key("redis", key_file=None, data_folder=tmp_path)


class StoreMachine(RuleBasedStateMachine):
    """Two servers over one store, beside two over the memory store. A server may die, and another replaces it."""

    make: Callable[[], StateStore]
    num_servers = 2

    @initialize()
    def begin(self) -> None:
        self.shared = SharedRecords()
        self.prepare()
        self.stores = [type(self).make() for _ in range(self.num_servers)]
        self.plain = [MemoryStore(self.shared) for _ in range(self.num_servers)]

    def prepare(self) -> None:
        """Makes an empty store."""

    @rule(server=st.integers(0, 1), name=st.sampled_from("abc"))
    def claims(self, server: int, name: str) -> None:
        server %= self.num_servers
        found, expected = claim(self.stores[server], name), claim(self.plain[server], name)
        if isinstance(expected, Held):
            assert isinstance(found, Held)
        else:
            assert found == expected

    @rule(server=st.integers(0, 1), name=st.sampled_from("abc"))
    def reserve(self, server: int, name: str) -> None:
        server %= self.num_servers
        assert self.stores[server].reserve(name, LATER) == self.plain[server].reserve(name, LATER)

    @rule(server=st.integers(0, 1), name=st.sampled_from("abc"))
    def has(self, server: int, name: str) -> None:
        server %= self.num_servers
        assert self.stores[server].has(name) == self.plain[server].has(name)

    @rule(
        server=st.integers(0, 1),
        names=st.lists(st.sampled_from("abc"), unique=True, min_size=1),
        epoch=st.integers(1, 4),
        payload=st.none() | st.binary(max_size=3),
        ownership=st.sampled_from(Ownership),
    )
    def write(self, server: int, names: list[str], epoch: int, payload: bytes | None, ownership: Ownership) -> None:
        server %= self.num_servers
        if ownership is Ownership.GONE:
            payload = payload or b"how"
        writes = [write(name, epoch, payload, ownership) for name in names]
        assert self.stores[server].write(writes) == self.plain[server].write(writes)

    @rule(server=st.integers(0, 1), name=st.sampled_from("abc"))
    def undo_claim(self, server: int, name: str) -> None:
        server %= self.num_servers
        self.stores[server].undo_claim(name)
        self.plain[server].undo_claim(name)

    @rule(server=st.integers(0, 1))
    def beat(self, server: int) -> None:
        server %= self.num_servers
        assert self.stores[server].heartbeat().wanted == self.plain[server].heartbeat().wanted

    @rule(server=st.integers(0, 1))
    def die(self, server: int) -> None:
        server %= self.num_servers
        self.stores[server].close()
        self.plain[server].close()
        self.stores[server] = type(self).make()
        self.plain[server] = MemoryStore(self.shared)

    def teardown(self) -> None:
        for store in getattr(self, "stores", []):
            store.close()


class LmdbMachine(StoreMachine):
    num_servers = 1

    def prepare(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=QUICK_DISK))
        type(self).make = lambda: LmdbStore(self.folder)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def test_the_embedded_store_is_as_the_plain_one() -> None:
    run_state_machine_as_test(LmdbMachine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))


def test_redis_is_as_the_plain_one(redis: RedisServer) -> None:
    class RedisMachine(StoreMachine):
        number = 0

        def prepare(self) -> None:
            RedisMachine.number += 1
            prefix = f"machine-{RedisMachine.number}:"
            RedisMachine.make = lambda: RedisStore(redis.url, prefix=prefix)

    run_state_machine_as_test(RedisMachine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))


def test_a_refusal_of_redis_is_reported_with_advice(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            client.config_set("requirepass", "hush")
        address = server.url.removeprefix("redis://")
        for url, found, timeout_s in (
            (f"redis://{address}", "it requires a password: set redis_url to redis://:PASSWORD@HOST:PORT/0", 10.0),
            (f"redis://:wrong@{address}", "correct the user and the password in redis_url", 10.0),
            # Redis never answers a TLS handshake
            (f"rediss://{address}", "if it does not use TLS, set redis_url to a URL that begins with redis://", 0.2),
        ):
            with pytest.raises(StoreError) as refused:
                check_reachable(url, timeout_s)
            assert found in str(refused.value)
            assert "wrong" not in str(refused.value).replace("WRONGPASS", "")
        check_reachable(f"redis://:hush@{address}")

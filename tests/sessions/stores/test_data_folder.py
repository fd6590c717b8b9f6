"""The embedded store's folder: its permissions, its lock, and changes by other programs."""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import lmdb
import pytest
from structlog.testing import capture_logs

from service.sessions.stores.base import StoreError, Write
from service.sessions.stores.data_folder import check_folder, is_in_use
from service.sessions.stores.lmdb import LmdbStore
from service.sessions.stores.lmdb_file import check_data_file
from service.sessions.stores.open_store import open_store, signing_key
from tests.sessions.stores.claims import claim, mine

PAGE = 4096
LATER = 3600.0
RESTORE = "restore it from a backup, or move it away to start without its sessions$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a store's folder with 100 records of two pages each. No process has it open."""
    path = tmp_path / "sessions"
    with closing(LmdbStore(path)) as store:
        store.write([Write(str(index), 1, bytes(2 * PAGE), LATER) for index in range(100)])
    return path


@pytest.fixture
def open_to_others() -> Iterator[None]:
    """Sets the umask to 0, so that new files and folders keep all permissions that they are made with."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Yields a folder that every user may change, below folders that every user may enter."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@contextmanager
def as_plain_user() -> Iterator[None]:
    """Runs as another user if this user is root, because root has every permission."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def modes(folder: Path) -> dict[str, str]:
    """Returns the permissions of a folder and everything in it."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in paths}


def start(data_folder: Path) -> LmdbStore:
    """Opens the key and the store as a server does."""
    signing_key("lmdb", key_file=None, data_folder=data_folder)
    store = open_store("lmdb", data_folder=data_folder, redis_url="", lease_s=1.0)
    assert isinstance(store, LmdbStore)
    return store


PRIVATE = {
    ".": "700",
    "snapshot.key": "600",
    "sessions": "700",
    "sessions/data.mdb": "600",
    "sessions/lock.mdb": "600",
    "sessions/owner.lock": "600",
}


def test_a_file_that_was_cut_anywhere_is_refused_and_a_whole_one_is_not(folder: Path) -> None:
    data = folder / "data.mdb"
    whole = data.read_bytes()
    for size in [*range(PAGE, len(whole), 16 * PAGE), len(whole) - PAGE, len(whole) - 1]:
        data.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=f"^{data} is cut off.*{RESTORE}"):
            LmdbStore(folder)
    data.write_bytes(whole)
    with closing(LmdbStore(folder)) as store:
        assert claim(store, "99") == mine(2, bytes(2 * PAGE))


def test_a_file_whose_free_pages_at_the_end_were_never_written_is_whole(folder: Path) -> None:
    """LMDB does not write a page that was allocated and freed in one transaction."""
    environment = lmdb.open(str(folder), map_size=1 << 26, max_dbs=3)
    with environment.begin(write=True) as transaction:
        transaction.put(b"large", bytes(50 * PAGE))
        transaction.delete(b"large")
    num_pages = environment.info()["last_pgno"] + 1
    environment.close()
    data = folder / "data.mdb"
    size = data.stat().st_size
    assert size < num_pages * PAGE, "LMDB wrote them: this test tests nothing"
    with closing(LmdbStore(folder)) as store:
        assert claim(store, "99") == mine(2, bytes(2 * PAGE))
    os.truncate(data, size - 20 * PAGE)
    with pytest.raises(StoreError, match="is cut off"):
        LmdbStore(folder)


def test_whatever_was_written_and_deleted_the_file_is_whole(tmp_path: Path) -> None:
    """After this many transactions the list of free pages is a tree, whose long values use overflow pages."""
    rng, num_short = random.Random(1), 0
    data = tmp_path / "data.mdb"
    environment = lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=1, sync=False)
    database = environment.open_db(b"records")
    for _ in range(200):
        with environment.begin(write=True, db=database) as transaction:
            for _ in range(rng.choice([3, 30, 100])):
                transaction.put(str(rng.randrange(1000)).encode(), bytes(rng.choice([10, 900, 3000, 9000, 70_000])))
            with transaction.cursor() as cursor:
                while rng.random() < 0.99 and cursor.first():
                    cursor.delete()
            transaction.put(b"large", bytes(rng.randrange(20) * PAGE))
            transaction.delete(b"large")
        check_data_file(data)
        num_short += data.stat().st_size < (environment.info()["last_pgno"] + 1) * PAGE
    environment.close()
    assert num_short > 20, "most files were as long as their last page number says: this test tests little"


def overwrite(begin: int) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(b"?" * PAGE)

    return act


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), f"is empty: {RESTORE}"),
        (lambda path: path.write_bytes(b"some text"), f"is not an LMDB file: {RESTORE}"),
        (lambda path: path.write_bytes(bytes(10 * PAGE)), f"is not an LMDB file: {RESTORE}"),
        (overwrite(0), f"is not an LMDB file: {RESTORE}"),
        (overwrite(PAGE), f"is cut off or damaged after its first page: {RESTORE}"),
        (replace_by(Path.mkdir), "is not a regular file: move it away, or set data_folder to another folder$"),
        (replace_by(os.mkfifo), "is not a regular file: move it away, or set data_folder to another folder$"),
    ],
    ids=["empty", "text", "zeros", "first page", "second page", "folder", "pipe"],
)
def test_a_file_that_is_not_a_data_file_is_refused_with_advice(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(folder, folder.with_name("backup"))
    damage(folder / "data.mdb")
    with pytest.raises(StoreError, match=f"^{folder / 'data.mdb'} {message}"):
        LmdbStore(folder)
    shutil.rmtree(folder)
    folder.with_name("backup").rename(folder)
    with closing(LmdbStore(folder)) as store:  # the refused store has released the lock and the file
        assert claim(store, "0") == mine(2, bytes(2 * PAGE))


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    for act in (start, lambda path: open_store("lmdb", data_folder=path, redis_url="", lease_s=1.0)):
        with pytest.raises(StoreError, match=f"^{tmp_path / 'data'} is not a folder: move it away"):
            act(tmp_path / "data")


@pytest.mark.parametrize("name", ["data.mdb", "owner.lock", "lock.mdb", "."])
def test_a_file_without_permission_is_reported_with_advice(reachable: Path, name: str) -> None:
    folder = reachable / "sessions"
    with as_plain_user():
        LmdbStore(folder).close()
        (folder / name).chmod(0)
        with pytest.raises(StoreError, match=rf"{folder}.*\(.*Permission denied\): .*data_folder to another folder$"):
            LmdbStore(folder)
        (folder / name).chmod(0o700)


def test_a_killed_server_leaves_no_half_made_file(tmp_path: Path) -> None:
    """The remaining file has another name, and the next start creates it again."""
    (tmp_path / "data.mdb.new").write_bytes(bytes(100))
    with closing(LmdbStore(tmp_path)) as store:
        assert store.reserve("a", LATER) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.mdb", "lock.mdb", "owner.lock"]


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def replace_folder(folder: Path) -> None:
    move_away(folder)
    shutil.copytree(folder.with_name("away"), folder)


def replace_data(folder: Path) -> None:
    shutil.copy(folder / "data.mdb", folder / "copy")
    (folder / "copy").rename(folder / "data.mdb")


def replace_lock(folder: Path) -> None:
    (folder / "owner.lock").unlink()
    (folder / "owner.lock").touch()


def cut(folder: Path) -> None:
    os.truncate(folder / "data.mdb", (folder / "data.mdb").stat().st_size - PAGE)


CHANGES = [
    (remove, "was removed while the server runs"),
    (move_away, "was removed while the server runs"),
    (replace_folder, "was replaced while the server runs"),
    (lambda folder: (folder / "data.mdb").unlink(), "data.mdb was removed while the server runs"),
    (replace_data, "data.mdb was replaced while the server runs"),
    (lambda folder: (folder / "owner.lock").unlink(), "owner.lock was removed while the server runs"),
    (replace_lock, "owner.lock was replaced while the server runs"),
    (cut, "data.mdb was cut from [0-9]+ to [0-9]+ bytes while the server runs"),
]
NAMES = ["removed", "moved", "replaced", "no data", "other data", "no lock", "other lock", "cut"]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=NAMES)
def test_every_call_of_a_store_whose_folder_changed_fails(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    with closing(LmdbStore(folder)) as store:
        store.write([Write("0", 1, None, LATER)])
        change(folder)
        for ask in (
            lambda: store.write([Write("0", 1, b"acknowledged", LATER)]),
            lambda: store.claim(["0"]),
            lambda: store.reserve("new", LATER),
            lambda: store.has("0"),
            lambda: store.undo_claim("0"),
            lambda: store.set_aside("0"),
            lambda: store.sweep(10),
            store.heartbeat,
        ):
            with pytest.raises(StoreError, match=f"{message}: .*restart the server$"):
                ask()


@pytest.mark.parametrize(("change", "message"), CHANGES[:-1], ids=NAMES[:-1])
def test_what_a_transaction_wrote_to_a_file_that_went_meanwhile_is_not_acknowledged(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    changes = [change]

    def clock() -> float:  # the transaction that writes a record asks for the time
        while changes:
            changes.pop()(folder)
        return time.time()

    with closing(LmdbStore(folder, clock=clock)) as store, pytest.raises(StoreError, match=message):
        store.write([Write("0", 1, b"acknowledged", LATER)])


def test_a_store_whose_folder_is_moved_back_works_again(folder: Path) -> None:
    with closing(LmdbStore(folder)) as store:
        move_away(folder)
        with closing(LmdbStore(folder)) as other:  # another server on the same path
            assert other.reserve("0", LATER) == 1
            with pytest.raises(StoreError):
                store.heartbeat()
        remove(folder)
        folder.with_name("away").rename(folder)
        store.heartbeat()
        assert claim(store, "0") == mine(2, bytes(2 * PAGE))


def test_a_store_that_grows_is_the_same(folder: Path) -> None:
    with closing(LmdbStore(folder, initial_bytes=1 << 20)) as store:
        size = (folder / "data.mdb").stat().st_size
        for index in range(20):
            store.write([Write(f"{index} more", 1, bytes(50 * PAGE), LATER)])
            store.heartbeat()
        assert (folder / "data.mdb").stat().st_size > 2 * size


def test_a_new_folder_is_its_users_alone(tmp_path: Path, open_to_others: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permissions are right from the first moment; nothing changes them later."""
    monkeypatch.setattr(Path, "chmod", lambda *_: pytest.fail("it was open to others"))
    with closing(start(tmp_path / "data")):
        assert modes(tmp_path / "data") == PRIVATE


def test_an_old_folder_is_made_its_users_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    start(data).close()
    for name, mode in PRIVATE.items():
        (data / name).chmod(int(mode, 8) | 0o066)
    with capture_logs() as logs, closing(start(data)):
        assert modes(data) == PRIVATE
    assert logs == []


def test_permissions_that_cannot_be_changed_are_logged_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts although it cannot change them, for example because of a volume's group or another owner."""
    data = tmp_path / "data"
    start(data).close()
    for name in PRIVATE:
        (data / name).chmod(0o770)

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with capture_logs() as logs, closing(start(data)) as store:
        assert store.reserve("a", LATER) == 1
    assert {entry["path"] for entry in logs} == {str(data / name) for name in PRIVATE}
    for entry in logs:
        assert (entry["event"], entry["log_level"]) == ("data_folder.open_to_others", "warning")
        assert (entry["mode"], entry["reason"]) == ("0770", "Operation not permitted")
        assert "run `chmod go-rwx`" in entry["advice"]


def test_a_folder_that_all_use_stays_so(tmp_path: Path) -> None:
    """For example /tmp: a change would exclude all other users."""
    tmp_path.chmod(0o1777)
    with capture_logs() as logs, closing(start(tmp_path)):
        assert modes(tmp_path) == PRIVATE | {".": "1777"}
    assert {(entry["path"], entry["reason"]) for entry in logs} == {(str(tmp_path), "it has the sticky bit")}


def test_a_key_that_an_operator_gives_keeps_its_permissions(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    key.chmod(0o640)
    assert signing_key("lmdb", key_file=key, data_folder=tmp_path / "data") == bytes(16)
    assert modes(tmp_path)["key"] == "640"


def test_only_the_owner_of_the_folder_creates_the_key(tmp_path: Path) -> None:
    with closing(open_store("lmdb", data_folder=tmp_path, redis_url="", lease_s=1.0)):
        with pytest.raises(StoreError, match=f"{tmp_path / 'sessions'} is in use by another process"):
            signing_key("lmdb", key_file=None, data_folder=tmp_path)
        assert not (tmp_path / "snapshot.key").exists()
    made = signing_key("lmdb", key_file=None, data_folder=tmp_path)
    with closing(open_store("lmdb", data_folder=tmp_path, redis_url="", lease_s=1.0)):
        assert signing_key("lmdb", key_file=None, data_folder=tmp_path) == made


def test_a_key_is_created_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="No space left"):
            signing_key("lmdb", key_file=None, data_folder=tmp_path)
    assert not (tmp_path / "snapshot.key").exists()
    assert len(signing_key("lmdb", key_file=None, data_folder=tmp_path)) == 32
    assert not (tmp_path / "snapshot.key.new").exists()


def test_a_folder_that_cannot_be_written_to_is_named_as_read_only_and_nothing_is_made(reachable: Path) -> None:
    (reachable / "read-only").mkdir()
    (reachable / "read-only").chmod(0o555)
    with as_plain_user():
        check_folder(reachable)
        check_folder(reachable / "new" / "data")
        message = "is read-only for the server's user .*: let that user read and write it"
        with pytest.raises(StoreError, match=f"^{reachable}/read-only {message}"):
            check_folder(reachable / "read-only")
        with pytest.raises(StoreError, match=f"/data cannot be made: the folder {reachable}/read-only {message}"):
            check_folder(reachable / "read-only" / "data")
    assert not (reachable / "new").exists()


def test_a_folder_is_in_use_while_a_process_has_it(tmp_path: Path) -> None:
    assert not is_in_use(tmp_path / "sessions")
    with closing(LmdbStore(tmp_path / "sessions")):
        assert is_in_use(tmp_path / "sessions")
    assert not is_in_use(tmp_path / "sessions")

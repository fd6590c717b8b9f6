"""Opens the store that the settings name, and reads the key that signs snapshots."""

from __future__ import annotations

import os
import secrets
from contextlib import closing
from pathlib import Path

from service.sessions.stores.base import StateStore, StoreError
from service.sessions.stores.data_folder import DataFolder, check_folder, is_in_use, make_folder, put_in_place, tighten
from service.sessions.stores.lmdb import LmdbStore
from service.sessions.stores.lmdb_file import check_data_file
from service.sessions.stores.memory import MemoryStore

_SESSIONS = "sessions"
"""The embedded store's folder in the data folder."""
_KEY_FILE = "snapshot.key"
_KEY_BYTES = 32
_LEAST_KEY_BYTES = 16


def check_store(kind: str, *, key_file: Path | None, data_folder: Path, redis_url: str) -> None:
    """Checks whether `signing_key` and `open_store` can succeed. Creates nothing. An embedded store that another
    process uses passes the check. Raises StoreError as they do."""
    if kind == "redis" and key_file is None:
        raise _no_key()
    if key_file is not None:
        _read_key(key_file)
    if kind == "lmdb":
        check_folder(data_folder)
        for folder in (data_folder, data_folder / _SESSIONS):
            if folder.exists():
                check_folder(folder)
        if key_file is None and (data_folder / _KEY_FILE).exists():
            _read_key(data_folder / _KEY_FILE)
        data_file = data_folder / _SESSIONS / "data.mdb"
        if os.path.lexists(data_file) and not is_store_in_use(kind, data_folder):
            check_data_file(data_file)
    elif kind == "redis":
        from service.sessions.stores.redis_address import check_reachable  # noqa: PLC0415  # only redis needs it

        check_reachable(redis_url)


def is_store_in_use(kind: str, data_folder: Path) -> bool:
    """Whether another process uses the embedded store."""
    return kind == "lmdb" and is_in_use(data_folder / _SESSIONS)


def lost_key(kind: str, key_file: Path | None, data_folder: Path) -> Path | None:
    """Returns the file of the key that `signing_key` would make although the data folder has a store, else None."""
    path, data_file = data_folder / _KEY_FILE, data_folder / _SESSIONS / "data.mdb"
    is_lost = kind == "lmdb" and key_file is None and os.path.exists(data_file) and not os.path.exists(path)
    return path if is_lost else None


def open_store(kind: str, *, data_folder: Path, redis_url: str, lease_s: float) -> StateStore:
    """Opens a store. kind: lmdb, redis or memory. Raises StoreError."""
    if kind == "lmdb":
        make_folder(data_folder)
        return LmdbStore(data_folder / _SESSIONS)
    if kind == "redis":
        from service.sessions.stores.redis import RedisStore  # noqa: PLC0415  # only redis needs it

        return RedisStore(redis_url, lease_s=lease_s)
    return MemoryStore()


def signing_key(kind: str, *, key_file: Path | None, data_folder: Path) -> bytes:
    """Returns the signing key: the content of `key_file`; else, for lmdb, of a key file in the data folder, which is
    created if missing; else a new random key, which no other process knows.

    Raises StoreError for a file that cannot be read or is too short, for a shared store without a key file, and when
    another process uses the data folder and it has no key yet.
    """
    if key_file is None and kind == "redis":
        raise _no_key()
    if key_file is None and kind == "memory":
        return secrets.token_bytes(_KEY_BYTES)
    if key_file is not None:
        return _read_key(key_file)
    path = data_folder / _KEY_FILE
    try:
        _make_key(path)
    except OSError as error:
        raise StoreError(
            f"data_folder: the key {path} cannot be made ({error.strerror}): let the server's user write there, set"
            " data_folder to another folder, or give a key by snapshot_key_file"
        ) from error
    return _read_key(path)


def _no_key() -> StoreError:
    return StoreError("store = redis needs snapshot_key_file: servers that share a store need the same key")


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"snapshot_key_file = {path} cannot be read: {error.strerror}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise StoreError(f"snapshot_key_file = {path} has {len(key)} bytes, it must have {_LEAST_KEY_BYTES} or more")
    return key


def _make_key(path: Path) -> None:
    """Writes a new key unless there is one, under the store's lock: when several servers start at once, only one makes
    a key. Raises StoreError and OSError."""
    make_folder(path.parent)
    if path.exists():
        tighten(path)
        return
    with closing(DataFolder(path.parent / _SESSIONS)):
        if path.exists():
            return
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        put_in_place(new, path)

"""Opening the store that the settings name, and the key that signs what goes there."""

from __future__ import annotations

import secrets
from pathlib import Path

from service.sessions.stores.base import StateStore, StoreError
from service.sessions.stores.data_folder import make_folder, tighten
from service.sessions.stores.lmdb import LmdbStore
from service.sessions.stores.memory import MemoryStore
from service.sessions.stores.redis import RedisStore

_KEY_BYTES = 32
_LEAST_KEY_BYTES = 16


def open_store(kind: str, *, data_folder: Path, redis_url: str, lease_s: float) -> StateStore:
    """A store. kind: lmdb, redis or memory. Raises StoreError."""
    if kind == "lmdb":
        make_folder(data_folder)
        return LmdbStore(data_folder / "sessions")
    if kind == "redis":
        return RedisStore(redis_url, lease_s=lease_s)
    return MemoryStore()


def signing_key(kind: str, *, key_file: Path | None, data_folder: Path) -> bytes:
    """The key: of a file that is given; else, for lmdb, of one that is made in the data folder; else a new one, with
    which nobody else can read what this process has signed.

    Raises StoreError for a file that cannot be read or is too short, and for a shared store without one.
    """
    if key_file is None and kind == "redis":
        raise StoreError("store = redis needs snapshot_key_file: servers that share a store need the same key")
    if key_file is None and kind == "memory":
        return secrets.token_bytes(_KEY_BYTES)
    path = key_file or data_folder / "snapshot.key"
    try:
        if key_file is None:
            make_folder(path.parent)
            if not path.exists():
                path.touch(mode=0o600)
                path.write_bytes(secrets.token_bytes(_KEY_BYTES))
            tighten(path)
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"snapshot_key_file = {path} cannot be read: {error}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise StoreError(f"snapshot_key_file = {path} has {len(key)} bytes, it must have {_LEAST_KEY_BYTES} or more")
    return key

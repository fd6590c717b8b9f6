"""Opens the sessions' storage that the settings describe."""

from __future__ import annotations

import asyncio

import structlog

from service.observer import StoreObserver
from service.process import StartError
from service.sessions.record_cipher import RecordCipher
from service.sessions.snapshot import Codec
from service.sessions.storage import HEARTBEAT_S, Storage
from service.sessions.storage_keys import mode_open_to_others, read_keys
from service.sessions.stores.base import StateStore, StoreError
from service.sessions.stores.open_store import lost_key, open_store, signing_key
from service.settings import Settings

log = structlog.get_logger()

KEY_ADVICE = "a start makes a new key, which cannot read earlier sessions: put the file back, or set snapshot_key_file"
ADVICE = "other users of this machine may decrypt stored sessions: run `chmod o-rwx` on it as its owner"


def cipher_of(settings: Settings) -> RecordCipher:
    """Returns the cipher for stored sessions. Raises StartError for keys that cannot be used."""
    if settings.storage_key_file is None:
        return RecordCipher()
    try:
        return RecordCipher(read_keys(settings.storage_key_file))
    except StoreError as error:
        raise StartError(str(error)) from error


def open_key_mode(settings: Settings) -> str | None:
    """Returns the octal mode of the storage keys' file if other users can open it, else None."""
    try:
        return None if settings.storage_key_file is None else mode_open_to_others(settings.storage_key_file)
    except OSError:  # reported by the code that reads the keys
        return None


async def open_storage(settings: Settings, observer: StoreObserver) -> Storage:
    """Opens the storage without starting it. Creates the data folder and the signing key in it if they are missing.
    Raises StartError."""

    cipher = await asyncio.to_thread(cipher_of, settings)
    if mode := open_key_mode(settings):
        log.warning("storage_key_file.open_to_others", path=str(settings.storage_key_file), mode=mode, advice=ADVICE)
    if lost := lost_key(settings.store, settings.snapshot_key_file, settings.data_folder):
        log.warning("snapshot_key.missing", path=str(lost), advice=KEY_ADVICE)

    def open_all() -> tuple[StateStore, bytes]:
        key = signing_key(settings.store, key_file=settings.snapshot_key_file, data_folder=settings.data_folder)
        store = open_store(
            settings.store,
            data_folder=settings.data_folder,
            redis_url=settings.redis_url.get_secret_value(),
            lease_s=settings.lease_s,
        )
        return store, key

    try:
        store, key = await asyncio.to_thread(open_all)
    except StoreError as error:
        raise StartError(str(error)) from error
    codec = Codec(key, is_compressed=settings.snapshot_compression)
    return Storage(store, codec, observer, cipher=cipher, heartbeat_s=min(HEARTBEAT_S, settings.lease_s / 3))

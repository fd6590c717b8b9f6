"""Opens the storage of sessions that the settings name."""

from __future__ import annotations

import asyncio

from service.observer import StoreObserver
from service.process import StartError
from service.sessions.snapshot import Codec
from service.sessions.storage import Storage
from service.sessions.stores.base import StateStore, StoreError
from service.sessions.stores.opening import open_store, signing_key
from service.settings import Settings


async def open_storage(settings: Settings, observer: StoreObserver) -> Storage:
    """The storage, not started yet. Makes the data folder and the key in it, where they are missing. Raises
    StartError."""

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
    return Storage(store, codec, observer, heartbeat_s=min(0.1, settings.lease_s / 3))

"""Claims of one record, as tests make them."""

from __future__ import annotations

from service.sessions.stores.base import Claim, Claimed, CorruptRecordError, StateStore


def claim(store: StateStore, session_id: str) -> Claim:
    """Claims one record; however long it lasts. Raises CorruptRecordError."""
    (found,) = store.claim([session_id])
    if isinstance(found, CorruptRecordError):
        raise found
    return found._replace(ttl_s=0.0) if isinstance(found, Claimed) else found


def mine(epoch: int, payload: bytes | None) -> Claimed:
    """What `claim` returns."""
    return Claimed(epoch, payload, 0.0)

"""Claims of one record."""

from __future__ import annotations

from service.sessions.stores.base import Claim, Claimed, CorruptRecordError, StateStore


def claim(store: StateStore, session_id: str) -> Claim:
    """Claims one record. The result has `ttl_s` 0, so that tests can compare it. Raises CorruptRecordError."""
    (found,) = store.claim([session_id])
    if isinstance(found, CorruptRecordError):
        raise found
    return found._replace(ttl_s=0.0) if isinstance(found, Claimed) else found


def mine(epoch: int, payload: bytes | None) -> Claimed:
    """Returns what `claim` returns for a claimed record."""
    return Claimed(epoch, payload, 0.0)

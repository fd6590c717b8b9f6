"""Records of the embedded store that were damaged on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb


def tear(folder: Path, session_id: str, change: Callable[[bytes], bytes]) -> None:
    """Replaces the bytes of a record. folder: of a store that no process uses. change: returns the new bytes."""
    with lmdb.open(str(folder), max_dbs=3) as environment:
        records = environment.open_db(b"records")
        with environment.begin(write=True, db=records) as transaction:
            key = session_id.encode()
            transaction.put(key, change(bytes(transaction.get(key) or b"")))

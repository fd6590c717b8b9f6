"""Records in Redis or Valkey, which several servers share.

A record is a hash. Each change of a record is a script, which Redis runs atomically. A server counts as alive while its
key exists; it renews the key. Other servers put the ids that they want from a server into that server's set.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import redis

from service.sessions.stores import redis_scripts
from service.sessions.stores.base import (
    CLAIMED_S,
    LEASE_S,
    Beat,
    Claim,
    Claimed,
    Gone,
    Held,
    StoreError,
    Write,
    Written,
    id_of,
    if_idle,
)
from service.sessions.stores.redis_address import address_of, as_store_errors

_REMEMBERED_S = 86_400.0
"""How long after a server's last heartbeat Redis keeps the times at which it was alive."""
_SCANNED = 1000
"""The keys that Redis examines in one scan step."""


class RedisStore:
    """A `StateStore`. lease_s: how long this process counts as alive after its last heartbeat. timeout_s: of one call.

    Raises StoreError when Redis cannot be reached.
    """

    def __init__(
        self, url: str, *, lease_s: float = LEASE_S, prefix: str = "carousel:", timeout_s: float = 2.0
    ) -> None:
        self.owner = secrets.token_hex(8)
        self.lease_s: float | None = lease_s
        self._lease_ms = round(lease_s * 1000)
        self._prefix = prefix
        self._address = address_of(url)
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, decode_responses=False
        )
        # the short timeout lets an unanswered heartbeat be sent again before the lease expires; a separate client never
        # waits for other calls
        self._beats: Any = redis.Redis.from_url(
            url, socket_timeout=min(timeout_s, lease_s / 4), socket_connect_timeout=min(timeout_s, lease_s / 4)
        )
        self._beat = self._beats.register_script(redis_scripts.BEAT)
        self._is_taken = self._client.register_script(redis_scripts.IS_TAKEN)
        self._reserve = self._client.register_script(redis_scripts.RESERVE)
        self._claim = self._client.register_script(redis_scripts.CLAIM)
        self._ask = self._client.register_script(redis_scripts.ASK)
        self._write = self._client.register_script(redis_scripts.WRITE)
        self._undo_claim = self._client.register_script(redis_scripts.UNDO_CLAIM)
        try:
            self._send_heartbeat(self._client)  # the first one may take longer
        except StoreError:
            self._client.close()
            self._beats.close()
            raise

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """See `StateStore`."""
        wanted = (session_id, if_idle(session_id))
        args: list[Any] = [self.owner, self._prefix, _milliseconds(ttl_s), *wanted, _term(), self._lease_ms]
        with as_store_errors(self._address):
            epoch = self._reserve(keys=[self._key(session_id)], args=args)
        return None if epoch is None else int(epoch)

    def has(self, session_id: str) -> bool:
        """See `StateStore`."""
        with as_store_errors(self._address):
            is_taken = self._is_taken(keys=[self._key(session_id)], args=[self.owner, self._prefix])
        return bool(is_taken)

    def ids(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", self._key(prefix)) + "*"
        with as_store_errors(self._address):
            keys = sorted(set(self._client.scan_iter(match=pattern, count=_SCANNED)))
            with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hget(key, "k")
                ownerships = pipeline.execute()
        found = [
            key.decode() for key, ownership in zip(keys, ownerships, strict=True) if ownership not in (None, b"gone")
        ]
        return [key.removeprefix(self._key("")) for key in found]

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """See `StateStore`."""
        term = _term()
        with as_store_errors(self._address), self._client.pipeline(transaction=False) as pipeline:
            for session_id in session_ids:
                own: list[Any] = [session_id, _milliseconds(CLAIMED_S), if_idle(session_id)]
                args = [self.owner, self._prefix, *own, term, self._lease_ms]
                self._claim(keys=[self._key(session_id)], args=args, client=pipeline)
            return [_claimed(*result) for result in pipeline.execute()]

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """See `StateStore`."""
        keys = [f"{self._prefix}o:{owner}", f"{self._prefix}w:{owner}", *(self._key(id_of(one)) for one in session_ids)]
        with as_store_errors(self._address):
            free = self._ask(keys=keys, args=[owner, self._lease_ms, *session_ids])
        return set(session_ids) if free == -1 else {session_ids[at] for at in free}

    def write(self, writes: Sequence[Write]) -> Written:
        """See `StateStore`."""
        term = _term()
        with as_store_errors(self._address), self._client.pipeline(transaction=False) as pipeline:
            for write in writes:
                args: list[Any] = [
                    self.owner,
                    write.epoch,
                    write.ownership.value,
                    _milliseconds(write.ttl_s),
                    0 if write.payload is None else 1,
                    write.payload or b"",
                    1 if write.makes else 0,
                    f"{self._prefix}o:{self.owner}",
                    term,
                    self._lease_ms,
                ]
                self._write(keys=[self._key(write.session_id)], args=args, client=pipeline)
            written = pipeline.execute()
        results = list(zip((write.session_id for write in writes), written, strict=True))
        return Written({one for one, code in results if code == 0}, {one for one, code in results if code < 0})

    def heartbeat(self) -> Beat:
        """See `StateStore`. Extends the expiry of the process's key instead of writing it, which also works when Redis
        has no memory left."""
        return self._send_heartbeat(self._beats)

    def _send_heartbeat(self, client: Any) -> Beat:
        keys = [f"{self._prefix}o:{self.owner}", f"{self._prefix}w:{self.owner}", f"{self._prefix}there"]
        args: list[Any] = [self._lease_ms, _term(), self.owner, _milliseconds(_REMEMBERED_S)]
        with as_store_errors(self._address):
            term, ids, rivals_ms = self._beat(keys=keys, args=args, client=client)
        return Beat(term.decode(), sorted(one.decode() for one in ids), int(rivals_ms) / 1000)

    def undo_claim(self, session_id: str) -> None:
        """See `StateStore`."""
        with as_store_errors(self._address):
            self._undo_claim(keys=[self._key(session_id)], args=[self.owner])

    def set_aside(self, session_id: str) -> None:
        """See `StateStore`."""
        with as_store_errors(self._address):
            self._client.rename(self._key(session_id), f"{self._prefix}aside:{session_id}")

    def risk(self) -> str:
        """See `StateStore`. A Redis that evicts keys deletes records without notice."""
        with as_store_errors(self._address):
            memory = self._client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if not memory.get("maxmemory") or policy == "noeviction":
            return ""
        return (
            f"the store at {self._address} has maxmemory-policy {policy}: when its memory is full it deletes sessions"
            " that it has acknowledged; set maxmemory-policy to noeviction"
        )

    def sweep(self, limit: int) -> int:
        """See `StateStore`. Redis itself removes expired records."""
        return 0

    def close(self) -> None:
        """See `StateStore`."""
        try:
            with as_store_errors(self._address):
                self._client.delete(f"{self._prefix}o:{self.owner}")
        finally:
            self._client.close()
            self._beats.close()

    def _key(self, session_id: str) -> str:
        return f"{self._prefix}s:{session_id}"


def _claimed(kind: bytes, *rest: Any) -> Claim:
    if kind == b"claimed":
        epoch, payload, ttl_ms = rest
        return Claimed(int(epoch), payload, int(ttl_ms) / 1000)
    if kind == b"held":
        owner, payload = rest
        return Held(owner.decode(), payload)
    return Gone(rest[0] or b"") if kind == b"gone" else None


def _term() -> str:
    """Returns a new name for the period in which this process counts as alive, in case that period begins now."""
    return secrets.token_hex(4)


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)

"""What a store of session records must do. It knows bytes and their owners, but no sessions.

A record belongs to the process that claimed it last, under an epoch that every claim increases (a fencing token:
Kleppmann 2016). Rules:

1. What `write` has accepted survives the end of the process, and of the machine as far as the store promises it.
2. Only the owner writes, and only under its epoch. A process that lost a record cannot change it any more.
3. A record can be claimed only when its owner is gone or has released it. After `ask`, an owner that is alive learns
   from `heartbeat` that another process wants the record. Requests made before the present owner got the record do not
   count.
4. A process that gets or makes a record counts as alive, even before its next heartbeat when the store has lost
   everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

LEASE_S = 3.0
"""The default of the setting lease_s."""
CLAIMED_S = 60.0
"""The least lifetime of a claimed record: long enough for its new owner to write it, also to a slow store."""

NO_ID = "~"
"""The first character of the names of records that have no session id: of spilled sessions that their policy does not
store, and of probes."""
_IF_IDLE = "?"


def if_idle(session_id: str) -> str:
    """Returns the form of an id that asks for a session only if no stream is attached to it and it does no work."""
    return _IF_IDLE + session_id


def id_of(wanted: str) -> str:
    """Returns the id in a wanted id, which may be one of `if_idle`."""
    return wanted.removeprefix(_IF_IDLE)


class StoreError(Exception):
    """The store cannot do the operation now: it is down, slow or full. Nothing acknowledged before is lost."""


class CorruptRecordError(StoreError):
    """A record cannot be read. Other records are not affected, and the record can be set aside."""


class Ownership(Enum):
    """Who may use a record. OWNED: its owner. FREE: any process that claims it. GONE: no process;
    the session has ended, and the payload says how."""

    OWNED = "owned"
    FREE = "free"
    GONE = "gone"


class Write(NamedTuple):
    """A change of one record. epoch: the epoch under which the writer owns it. payload: None leaves the payload
    unchanged. ttl_s: seconds after the write from which the record may vanish; the store counts them, because a
    server's clock may be wrong. makes: whether a missing record is created."""

    session_id: str
    epoch: int
    payload: bytes | None
    ttl_s: float
    ownership: Ownership = Ownership.OWNED
    makes: bool = True


class Written(NamedTuple):
    """The writes that were not done, by session. refused: another process owns the record, or it is gone. missing:
    there was no record, and the write was not allowed to create one."""

    refused: set[str]
    missing: set[str]


class Beat(NamedTuple):
    """The answer to a heartbeat. term: names the period in which this process counts as alive without a gap; while it
    stays the same, no other process could claim its records. wanted: ids of its sessions that other processes want, in
    the form in which they asked. rivals_s: the longest time for which another process was alive while this one counted
    as gone."""

    term: str
    wanted: list[str]
    rivals_s: float = 0.0


class Claimed(NamedTuple):
    """The record belongs to the caller. payload: None when its owner reserved it and ended without writing it. ttl_s:
    seconds after which it may vanish."""

    epoch: int
    payload: bytes | None
    ttl_s: float


class Held(NamedTuple):
    """Another process that is alive owns the record. payload: as it was written last; None: never written."""

    owner: str
    payload: bytes | None


class Gone(NamedTuple):
    """The session has ended. payload: as written."""

    payload: bytes


Claim = Claimed | Held | Gone | CorruptRecordError | None
"""The result of the claim of one record. None: there is no record."""


class StateStore(Protocol):
    """Keeps records. Every call may block, and may raise StoreError. All calls except `heartbeat` come from one thread
    at a time."""

    @property
    def owner(self) -> str:
        """The unique name of this process in the store."""

    @property
    def lease_s(self) -> float | None:
        """Seconds for which this process counts as alive after a heartbeat. None: as long as it has the store open."""

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """Reserves an id for the caller. Returns the epoch, or None when the id is in use. An id is free when it has

        - no record,
        - the record of an ended session, or
        - a record that was reserved and never written, and whose owner is gone.
        """

    def has(self, session_id: str) -> bool:
        """Whether `reserve` would refuse an id. Changes nothing."""

    def ids(self, prefix: str) -> list[str]:
        """Returns the ids with a prefix whose sessions have not ended, in order. Changes nothing."""

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """Claims records that their owners have released, or whose owners are gone. Each gets its next epoch, and does
        not expire within the next `CLAIMED_S`. A record that the caller owns already stays unchanged. When this raises,
        each record may have been claimed or not."""

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """Informs another process that its records are wanted, some of them `if_idle`. Returns those that it does not
        own any more, or all when it is gone: they can be claimed if they exist."""

    def write(self, writes: Sequence[Write]) -> Written:
        """Changes the records of distinct sessions in one batch. A missing record is created from the payload, under
        the write's epoch, if the write allows it: the store has lost the record, or it expired before its owner could
        renew it.

        Returns the writes that were not done. Under its epoch, the record of an ended session cannot change its
        ownership. When this raises, each record may have been written or not.
        """

    def heartbeat(self) -> Beat:
        """Reports that this process is alive. Must be called more often than once in the time of the lease. Another
        thread may call it at the same time as any other method."""

    def undo_claim(self, session_id: str) -> None:
        """Undoes a `reserve` or `claim` of the caller whose result it never received. A record of the caller that was
        never written is deleted; any other record of the caller can be claimed by any process. Records of other
        processes stay unchanged."""

    def set_aside(self, session_id: str) -> None:
        """Moves an unreadable record to a separate place where an operator finds it."""

    def risk(self) -> str:
        """Returns, for an operator, which settings of the store put acknowledged data at risk; "" when none do."""

    def sweep(self, limit: int) -> int:
        """Removes up to `limit` expired records. Returns the number of removed records."""

    def close(self) -> None:
        """Closes the store. This process no longer counts as alive, so its records can be claimed."""

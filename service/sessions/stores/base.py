"""What a store of sessions' records must do. It knows bytes, and whose they are, and no session.

A record belongs to the process that claimed it last, under an epoch that every claim makes greater (a fencing token:
Kleppmann 2016). Rules:

1. What `write` has returned for survives the end of the process, and of the machine as far as the store promises it.
2. Only the owner writes, and only under its epoch: who was deprived of a record cannot change it any more.
3. Only the record of an owner that is gone, or that has let it go, can be claimed. An owner that is there is told that
   somebody wants it, by `heartbeat`, once `ask` was called. What was wanted before it got the record does not count.
4. Who gets or makes a record counts as there, also before its next heartbeat when the store has lost everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

CLAIMED_S = 60.0
"""How long a record that was claimed lives at least: until its new owner has written it, also to a slow store."""

_POLITE = "?"


def politely(session_id: str) -> str:
    """An id as it is asked for, when the session is wanted unless a stream has it there, or it is at work."""
    return _POLITE + session_id


def id_of(wanted: str) -> str:
    """The id in what is asked for."""
    return wanted.removeprefix(_POLITE)


class StoreError(Exception):
    """The store cannot do it now: it is down, slow, or full. What was acknowledged before is not lost."""


class CorruptRecordError(StoreError):
    """A record cannot be read. It harms no other, and can be set aside."""


class Standing(Enum):
    """Whose a record is. OWNED: the writer's; FREE: anybody's who claims it; GONE: the session has ended, and the
    payload says how."""

    OWNED = "owned"
    FREE = "free"
    GONE = "gone"


class Write(NamedTuple):
    """A change of one record. epoch: under which the writer has it; payload: None leaves the record's as it is; ttl_s:
    seconds from when it is written after which the record may vanish: no server's clock counts, which may be wrong;
    makes: whether a record is made of the payload where there is none."""

    session_id: str
    epoch: int
    payload: bytes | None
    ttl_s: float
    standing: Standing = Standing.OWNED
    makes: bool = True


class Written(NamedTuple):
    """What became of writes, by session. refused: those of records that are another's, or gone; missing: those that
    found no record, and could make none."""

    refused: set[str]
    missing: set[str]


class Beat(NamedTuple):
    """A heartbeat was heard. term: a name of the time since when this process counts as there without a gap: as long as
    it is the same, nobody could claim its records; wanted: ids of its sessions that others want, as they asked;
    rivals_s: for how long another process has been there, at most, while this one counted as gone."""

    term: str
    wanted: list[str]
    rivals_s: float = 0.0


class Claimed(NamedTuple):
    """The record is the caller's. payload: None: reserved by its owner, which is gone, and never written; ttl_s: after
    which it may vanish."""

    epoch: int
    payload: bytes | None
    ttl_s: float


class Held(NamedTuple):
    """Another process has the record, which is there. payload: as it was written last; None: never."""

    owner: str
    payload: bytes | None


class Gone(NamedTuple):
    """The session has ended. payload: as written."""

    payload: bytes


Claim = Claimed | Held | Gone | CorruptRecordError | None
"""What became of the claim of one record. None: there is none."""


class StateStore(Protocol):
    """Keeps records. One thread at a time; every call may block, and may raise StoreError."""

    @property
    def owner(self) -> str:
        """The name of this process in the store, which no other has."""

    @property
    def lease_s(self) -> float | None:
        """Seconds for which this process counts as there after a heartbeat; None: for as long as it has the store."""

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """Takes an id that no record has, or one of a session that is gone, or one that an owner that is gone reserved
        and never wrote. Returns the epoch; None: it is taken."""

    def has(self, session_id: str) -> bool:
        """Whether `reserve` would refuse an id. Changes nothing."""

    def ids(self, prefix: str) -> list[str]:
        """The ids that begin with a prefix, of records of sessions that are not gone, in order. Changes nothing."""

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """Makes records the caller's, each under its next epoch, whose owners let them or are gone; they do not expire
        in the next `CLAIMED_S`. One that is the caller's already stays as it is. When it raises, each may have been
        claimed or not."""

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """Tells another process that its records are wanted, some of them `politely`. Returns those that are its no
        more, or all when it is gone: they can be claimed, as far as they are there."""

    def write(self, writes: Sequence[Write]) -> Written:
        """Changes records, of distinct sessions, in one go. One that is not there is made of a payload, under the
        write's epoch, as far as the write may: the store has lost it, or its time was over before its owner could renew
        it.

        Returns those that were not written. The record of a session that has ended becomes no other under its epoch.
        When it raises, each may have been written or not.
        """

    def heartbeat(self) -> Beat:
        """Tells that this process is there, which must be told more often than once in its lease's time. Another thread
        than that of the other calls may call it."""

    def let_go(self, session_id: str) -> None:
        """Undoes a `reserve` or `claim` of the caller's whose result it never knew. A record of the caller's that was
        never written vanishes, any other of its may be claimed by anybody. Others' records stay as they are."""

    def set_aside(self, session_id: str) -> None:
        """Moves a record that cannot be read out of the way, where an operator finds it."""

    def risk(self) -> str:
        """What the store's own settings put at risk of what it has acknowledged, for an operator; empty: nothing."""

    def sweep(self, limit: int) -> int:
        """Removes up to `limit` expired records. Returns how many."""

    def close(self) -> None:
        """Lets go of everything that this process owns, as far as the store knows it by the process alone."""

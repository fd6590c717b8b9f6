"""What a client believes about one of its sessions, and how answers and notices change it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from simulation.arithmetic import ZERO
from simulation.checks import Journal
from simulation.entries import Call, Entry, Presence
from simulation.loop import Life
from simulation.streams import ClientStream, Sent
from simulation.system import Replica
from simulation.worlds import World, Worlds, first_world

_LATE_S = 0.1
"""Virtual seconds that a store's call takes at most in nearly all cases."""
_FREED_S = 1.0
"""Virtual seconds after which a server has noticed that a client has disconnected."""


class Belief:
    """A session as its client believes it to be. floor: the position that must survive its server; floor_at_s: since
    when; stream: where the session is open; source: the source tokens of a translator; opened_at_s: the earliest time
    at which the session, or the one that it is a copy of, may have been opened."""

    def __init__(self, name: str, model: str, journal: Journal, replicas: Sequence[Replica]) -> None:
        self.name = name
        self.model = model
        knobs = replicas[0].knobs
        self.idle_timeout_s, self.max_age_s = knobs.idle_timeout_s, knobs.max_age_s or math.inf
        self.source: tuple[int, ...] = ()
        self.worlds = Worlds([World(0, ZERO)])
        self.presence = Presence.ABSENT
        self.is_exclusive = True
        self.stream: ClientStream | None = None
        self.home: ClientStream | None = None
        """The stream that was last answered that it has the session."""
        self.handle = 0
        self.is_made = False
        """Whether a server made the session's id."""
        self.durability: pb.Durability.ValueType = pb.DURABILITY_NONE
        self.action: pb.DisconnectAction.ValueType = pb.DISCONNECT_ACTION_FREE
        self.duration_s = 0.0
        self.queue: list[Entry] = []
        self.on_their_way: list[Sent] = []
        """Requests whose answers are not awaited any more, but which a server may still carry out."""
        self.floor: int | None = None
        self.floor_at_s, self.used_at_s, self.opened_at_s = 0.0, 0.0, math.inf
        self.num_closings = self.num_cancels = 0
        """Numbers of calls of `Sessions.Close` in progress, and of Cancels that were sent."""
        self.has_lost_close = False
        """Whether a Close on a stream may have been carried out, although its answer is lost or came too late."""
        self.may_be_closed = False
        """Whether a Close was refused, after which the session may be closed nevertheless."""
        self.unexplained: list[Sent] = []
        self.newest: Entry | None = None
        """The last request that was sent."""
        self.last: Entry | None = None
        """The last feed or generation that was sent. It may be sent again."""
        self.unstored: list[Entry] = []
        """Feeds and generations that were applied but could not be stored, in the order of sending."""
        self.closed_by: Life | None = None
        """The life of the replica that ended the session, or refused to open it, and may not have recorded this yet.
        None: it is recorded."""
        self.promised_by: Life | None = None
        """The life of the replica that promised to close the session, wherever it is, when the store works again."""
        self.wants: list[Sent | Call] = []
        """Resumes and calls that may make one replica hand the session over to another."""
        self.where: Replica | None = None
        """The replica that last answered that it has the session."""
        self.is_resuming = False
        """Whether a resume was not answered, so that a replica may have fetched the session without a client."""
        self.freed: tuple[Life, float] | None = None
        """Where and when the stream ended of a session that ends with its stream."""
        self.forgotten_at_s = float("-inf")
        """When the store lost the session's record."""
        self._journal = journal

    def __str__(self) -> str:
        return f"session {self.name!r} ({self.presence.value}, at {self.worlds.positions})"

    @property
    def is_usable(self) -> bool:
        """Whether the session is open on a stream that has not ended."""
        return self.presence is Presence.PRESENT and self.stream is not None and not self.stream.is_over

    @property
    def is_opening(self) -> bool:
        """Whether an open is unanswered."""
        return any(entry.sent.kind == "open" for entry in self.queue)

    @property
    def is_closing(self) -> bool:
        """Whether a Close is unanswered or may have been carried out."""
        is_asked = self.num_closings > 0 or self.has_lost_close or any(entry.is_close for entry in self.queue)
        return is_asked or self.is_promised

    @property
    def is_promised(self) -> bool:
        """Whether a replica promised to close the session and has not done so yet."""
        return self.promised_by is not None and not self.promised_by.is_over

    @property
    def is_strict(self) -> bool:
        """Whether answers wait until they are stored."""
        return self.durability == pb.DURABILITY_STRICT

    def opened(self, sent: Sent, answer: pb.StreamResponse) -> None:
        """Notes that a new session is open."""
        self.worlds = Worlds([first_world(self.model, self.source)])
        self.opened_at_s = sent.sent_at_s
        self._attached(sent, answer)
        self.floor = None
        self.last = None
        self.promised_by = None  # the promise was about an earlier session
        if self.forgotten_at_s < sent.sent_at_s:
            self.forgotten_at_s = float("-inf")
        self.unstored.clear()
        if self.is_strict:
            self.floor = 0
        if answer.position != 0:
            self.violate(f"a new session is at position {answer.position}")
        self.take_news(sent, answer)

    def resumed(self, sent: Sent, answer: pb.StreamResponse) -> None:
        """Notes that the session was resumed, and checks the position."""
        position = answer.position
        if answer.opened.restored_from == pb.RESTORED_FROM_STORE:
            if self.floor is not None and position < self.floor:
                self.violate(f"it comes back from the store at position {position}; what was stored is {self.floor}")
            if not self.worlds.restored(position):
                self.violate(f"it comes back from the store at position {position}, where it never was")
        elif not self.worlds.at_least(position):
            self.violate(f"it is resumed from memory at position {position}, where it cannot be")
        self._attached(sent, answer)
        self.take_news(sent, answer)

    def not_opened(self, entry: Entry, *, is_found: bool) -> None:
        """Notes that an open or resume failed, which changed nothing. is_found: whether a replica may have found the
        session."""
        if self.stream is entry.sent.stream and not self.is_opening:
            self.stream = self.home = self.home if is_found and self.home is self.stream else None
        self.presence = entry.before
        if entry.is_resume and is_found and self.durability != pb.DURABILITY_NONE:
            self.freed = None  # a replica may have claimed its record before it ended, and returned it to the store

    def take_news(self, sent: Sent, answer: pb.StreamResponse) -> None:
        """Notes the stored position that an answer reports."""
        if answer.HasField("checkpoint_position") and not answer.HasField("error") and not self.is_forgotten:
            self.floor = answer.checkpoint_position
            self.floor_at_s = max(self.floor_at_s, sent.sent_at_s)

    def detach(self) -> None:
        """Notes that no stream has the session any more."""
        stream, self.stream, self.home = self.stream, None, None
        self.handle = 0
        if self.action == pb.DISCONNECT_ACTION_FREE or self.presence is not Presence.PRESENT:
            self.presence = Presence.UNKNOWN
            is_freed = self.action == pb.DISCONNECT_ACTION_FREE and stream is not None and not self.is_resuming
            self.freed = (stream.replica.life, self.now()) if is_freed and stream else None

    def moved(self, stream: ClientStream) -> None:
        """Notes that the answer to a Close on `stream` said that another replica has the session."""
        if self.home is stream:
            self.detach()
            self.presence = Presence.UNKNOWN

    def forgotten(self) -> None:
        """Notes that the store has lost the session's record. If the session is open, it stays there and is stored
        again from there."""
        self.floor = None
        self.forgotten_at_s = self.now()
        if not self.is_usable or self.is_opening or self.is_closing:
            self.is_exclusive = False

    def look(self) -> None:
        """Notes that a session that ends with its stream is gone, some time after its stream if its replica lives."""
        if self.presence is Presence.UNKNOWN and self.freed is not None:
            life, since_s = self.freed
            if not life.is_over and self.now() - since_s > _FREED_S:
                self.presence = Presence.ABSENT
                self.floor = None

    def gone(self) -> None:
        """Notes that the session is closed."""
        self.presence = Presence.ABSENT
        self.stream = self.home = None
        self.floor = None

    def check_settled(self) -> None:
        """Checks at the end that no CANCELLED answer is unexplained."""
        if self.unexplained and self.is_usable and not self.is_closing:
            self.violate(f"{self.unexplained[0]} was answered CANCELLED, and nobody has cancelled it")

    def _attached(self, sent: Sent, answer: pb.StreamResponse) -> None:
        self.presence = Presence.PRESENT
        self.may_be_closed = self.has_lost_close = False
        self.freed = None
        self.stream = self.home = sent.stream
        self.where = sent.stream.replica
        here = [want for want in self.wants if isinstance(want, Call) and want.replica is sent.replica]
        if answer.opened.restored_from != pb.RESTORED_FROM_MEMORY:  # a claimed record gets new requests
            taken_s = min([sent.sent_at_s, *(call.sent_at_s for call in here)])  # a call may have claimed it earlier
            self.wants = [want for want in self.wants if self._may_be_wanted(want, taken_s)]
        self.wants = [want for want in self.wants if want not in here or want.ended_at_s > sent.sent_at_s]
        self.handle = answer.opened.handle
        self.durability = answer.opened.durability
        self.used_at_s = sent.sent_at_s
        self.unexplained.clear()
        if self.is_stored or answer.opened.restored_from:
            self.closed_by = None  # either the earlier session left no record, or this is its record
        if self.floor is not None:
            self.floor_at_s = sent.sent_at_s

    def _may_be_wanted(self, want: Sent | Call, since_s: float) -> bool:
        """Whether a replica may have asked for the session after `since_s` because of `want`, one of `wants`: until it
        has answered `want`, or, if no client waits for the answer any more, until its patience ends."""
        if want.is_lost:
            return since_s < want.sent_at_s + want.replica.patience_s
        return want.ended_at_s + _LATE_S > since_s  # its last request may still be on its way

    @property
    def is_stored(self) -> bool:
        """Whether the store has the session's id, so that every replica can find out whether it exists."""
        is_kept = self.action == pb.DISCONNECT_ACTION_KEEP
        is_known = self.floor is not None or not self.is_made  # an id made by a server is stored with the session
        return is_known and (is_kept or self.durability not in (pb.DURABILITY_NONE, pb.DURABILITY_UNSPECIFIED))

    @property
    def lives_until_s(self) -> float:
        """The time until which an unused session must be found; -inf if nothing of it must survive its server."""
        if self.floor is None:
            return -math.inf
        lifetime_s = self.idle_timeout_s
        if self.action != pb.DISCONNECT_ACTION_FREE:
            lifetime_s = min(lifetime_s, self.duration_s)
        return min(self.floor_at_s + lifetime_s, self.opened_at_s + self.max_age_s)

    @property
    def must_be_found(self) -> bool:
        """Whether the store has the session's record, or must have it."""
        return self.now() < self.lives_until_s and not self.may_be_expired(self.where)

    def may_be_expired(self, replica: Replica | None, at_s: float = math.inf) -> bool:
        """Whether the session's record may have expired or be lost although `replica` has the session. A record is
        renewed when half of its time is left, which is checked four times within the idle timeout. So the store must
        have failed for at least a quarter of that timeout since the last use. at_s: when the session was requested, if
        that was before now."""
        if replica is None:
            return False
        at_s = min(at_s, self.now())
        since_s = min(self.used_at_s, at_s - self._lifetime_s)
        return self._is_forgotten(at_s) or replica.store_trouble_s(since_s) >= 0.25 * self.idle_timeout_s

    @property
    def may_be_too_old(self) -> bool:
        """Whether the session may have reached the age at which it is closed."""
        return self.now() - self.opened_at_s >= self.max_age_s

    def may_be_overlooked(self, replica: Replica, at_s: float) -> bool:
        """Whether `replica`, when it was asked for the id at `at_s`, may not have known that another replica has it."""
        is_elsewhere = self.where not in (None, replica)
        return is_elsewhere and (not self.is_stored or self.may_be_expired(self.where, at_s))

    @property
    def _lifetime_s(self) -> float:
        return self.idle_timeout_s + (0.0 if self.action == pb.DISCONNECT_ACTION_FREE else self.duration_s)

    @property
    def is_forgotten(self) -> bool:
        """Whether the store has lost the session's record and may not have it again yet."""
        return self._is_forgotten(self.now())

    def _is_forgotten(self, at_s: float) -> bool:
        return at_s - self.forgotten_at_s < self._lifetime_s

    def closer_lives(self) -> bool:
        """Whether the replica that ended the session still lives, so that it records the end."""
        return self.closed_by is None or not self.closed_by.is_over

    def may_be_there(self, opening: Entry) -> bool:
        """Whether a session with this id may have existed before `opening`."""
        is_unrecorded = self.is_promised or not self.closer_lives()  # the store keeps it until its end is recorded
        return opening.before is not Presence.ABSENT or is_unrecorded

    def violate(self, text: str) -> None:
        """Reports a wrong answer or notice, unless the session may be too old or may not be the only one of its id."""
        if self.is_exclusive and not self.may_be_too_old:
            self._journal.violate(f"{self}: {text}")

    def now(self) -> float:
        """Returns the virtual time in seconds."""
        return self._journal.now()

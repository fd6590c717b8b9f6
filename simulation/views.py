"""What a client knows of one of its sessions, and what the answers about it must say.

The client is the only one that uses the session's id. It applies answers in the order in which it sent the requests:
that is the order in which the server promises to carry them out.
"""

from __future__ import annotations

from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from simulation.checks import Journal
from simulation.entries import REFUSALS, Entry, Presence
from simulation.streams import ClientStream, Sent
from simulation.system import Replica
from simulation.worlds import World, Worlds, beginning, output_matches, score_matches

_FREED_S = 1.0
"""Virtual seconds after which a server has noticed that a client has left."""


class View:
    """A session. floor: what must survive its server; floor_at_s: since when; stream: where it is open."""

    def __init__(self, name: str, model: str, journal: Journal, replicas: Sequence[Replica]) -> None:
        self.name = name
        self.model = model
        self.idle_timeout_s = replicas[0].knobs.idle_timeout_s
        self.closers = {replica.name: replica for replica in replicas}
        self.worlds = Worlds([beginning(model)])
        self.presence = Presence.ABSENT
        self.is_exclusive = True
        self.stream: ClientStream | None = None
        self.handle = 0
        self.durability = pb.DURABILITY_NONE
        self.action = pb.DISCONNECT_ACTION_FREE
        self.duration_s = 0.0
        self.queue: list[Entry] = []
        self.floor: int | None = None
        self.floor_at_s = 0.0
        self.used_at_s = 0.0
        self.num_closings = 0
        self.num_cancels = 0
        self.unexplained: list[Sent] = []
        self.last: Entry | None = None
        """The feed or the generation sent last, which may be sent again."""
        self.closed_by: tuple[str, int] | None = None
        """The replica and its life that answered Close."""
        self.freed: tuple[Replica, int, float] | None = None
        """Where and when its stream ended, with which it ends."""
        self._journal = journal

    def __str__(self) -> str:
        return f"session {self.name!r} ({self.presence.value}, at {self.worlds.positions})"

    @property
    def is_usable(self) -> bool:
        """Whether it is open on a stream that goes on."""
        return self.presence is Presence.PRESENT and self.stream is not None and not self.stream.is_over

    @property
    def is_opening(self) -> bool:
        """Whether an opening is on its way."""
        return any(entry.sent.kind == "open" for entry in self.queue)

    @property
    def is_closing(self) -> bool:
        """Whether a Close is on its way."""
        return self.num_closings > 0

    @property
    def is_strict(self) -> bool:
        """Whether its answers wait until they are stored."""
        return self.durability == pb.DURABILITY_STRICT

    def opened(self, sent: Sent, answer: pb.StreamResponse) -> None:
        """A new session is open."""
        self.worlds = Worlds([beginning(self.model)])
        self._attached(sent, answer)
        self.floor = None
        self.last = None
        if self.is_strict:
            self.floor = 0
        if answer.position != 0:
            self._violate(f"a new session is at position {answer.position}")
        self.take_news(answer)

    def resumed(self, sent: Sent, answer: pb.StreamResponse) -> None:
        """It is open again."""
        position = answer.position
        if answer.opened.restored_from == pb.RESTORED_FROM_STORE:
            if self.floor is not None and position < self.floor:
                self._violate(f"it comes back from the store at position {position}; what was stored is {self.floor}")
            if not self.worlds.restored(position):
                self._violate(f"it comes back from the store at position {position}, where it never was")
        elif not self.worlds.at_least(position):
            if sent.stream.replica.may_lose_sessions:  # it may be an old copy, which a replica has that lost its lease
                self.is_exclusive = False
            self._violate(f"it is resumed from memory at position {position}, where it cannot be")
        self._attached(sent, answer)
        self.take_news(answer)

    def take_news(self, answer: pb.StreamResponse) -> None:
        """The answer may tell how far the session is stored."""
        if answer.HasField("checkpoint_position") and not answer.HasField("error"):
            self.floor = answer.checkpoint_position
            self.floor_at_s = self._now()

    def lost(self) -> None:
        """What was asked last will not be answered: it was done, or in part, or not."""
        queue, self.queue = self.queue, []
        for entry in queue:
            if entry.sent.is_done:
                self._apply(entry)
            else:
                self._may_have(entry)
        self.unexplained.clear()

    def closed(self, stream: ClientStream, notice: pb.StreamResponse) -> None:
        """The server says that it is closed, or is somewhere else."""
        if self.presence is Presence.ABSENT:  # it is known already
            return
        reason, name = notice.closed.reason, pb.CloseReason.Name(notice.closed.reason)
        is_expected = {
            pb.CLOSE_REASON_CLIENT: self.is_closing,
            pb.CLOSE_REASON_IDLE: self._now() - self.used_at_s >= self.idle_timeout_s,
            pb.CLOSE_REASON_SHUTDOWN: stream.replica.is_draining,
            pb.CLOSE_REASON_MOVED: stream.replica.is_draining or stream.replica.may_lose_sessions,
        }.get(reason, False)
        if not is_expected:
            self._violate(f"{stream.name} is told {name}, for which there is no reason")
        self.lost()
        is_kept = reason == pb.CLOSE_REASON_IDLE and self.action == pb.DISCONNECT_ACTION_KEEP
        if is_kept or reason == pb.CLOSE_REASON_MOVED:
            self.detach()
            self.presence = Presence.UNKNOWN
        else:
            self.gone()

    def detach(self) -> None:
        """No stream has it any more."""
        stream, self.stream = self.stream, None
        self.handle = 0
        if self.action == pb.DISCONNECT_ACTION_FREE or self.presence is not Presence.PRESENT:
            self.presence = Presence.UNKNOWN
            is_freed = self.action == pb.DISCONNECT_ACTION_FREE and stream is not None
            self.freed = (stream.replica, stream.replica.num_lives, self._now()) if is_freed and stream else None

    def look(self) -> None:
        """A session that ends with its stream is gone some time after that, if its replica lives on."""
        if self.presence is Presence.UNKNOWN and self.freed is not None:
            replica, number, since_s = self.freed
            if replica.is_up and replica.num_lives == number and self._now() - since_s > _FREED_S:
                self.presence = Presence.ABSENT
                self.floor = None

    def gone(self) -> None:
        """It is closed."""
        self.presence = Presence.ABSENT
        self.stream = None
        self.floor = None

    def settle(self) -> None:
        """Applies answers, in the order of sending."""
        while self.queue and self.queue[0].sent.is_done:
            self._apply(self.queue.pop(0))

    def check_settled(self) -> None:
        """At the end: nothing is unexplained."""
        if self.unexplained and self.is_usable and not self.is_closing:
            self._violate(f"{self.unexplained[0]} was answered CANCELLED, and nobody has cancelled it")

    def _attached(self, sent: Sent, answer: pb.StreamResponse) -> None:
        self.presence = Presence.PRESENT
        self.freed = None
        self.stream = sent.stream
        self.handle = answer.opened.handle
        self.durability = answer.opened.durability
        self.used_at_s = sent.sent_at_s
        self.unexplained.clear()
        if self.floor is not None:
            self.floor_at_s = sent.sent_at_s

    def _apply(self, entry: Entry) -> None:
        answer = entry.sent.answer
        kind = answer.WhichOneof("response")
        if entry.sent.kind != "open":
            self.take_news(answer)
        if entry.sent.kind == "close":
            self.num_closings -= 1
        if kind == "error":
            if entry.sent.kind == "open":
                self._open_failed(entry, answer.error)
            else:
                self._failed(entry, answer.error, answer.position)
            return
        if kind == "opened":
            self._check_free(entry, answer)
            if entry.is_resume:
                self.resumed(entry.sent, answer)
            else:
                self.model, self.action, self.duration_s = entry.opening
                self.opened(entry.sent, answer)
        elif kind == "closed":
            self.gone()
            self.closed_by = (entry.sent.stream.replica.name, entry.sent.stream.replica.num_lives)
        if kind == "batch_stepped":
            errors = {error.index: error.error for error in answer.batch_stepped.errors}
            position = answer.batch_stepped.positions[entry.place]
            if entry.place in errors:
                self._failed(entry, errors[entry.place], position)
                return
            self._stepped(entry, answer.batch_stepped, position)
        elif kind == "fed":
            self._fed(entry, answer)
        elif kind == "generated":
            self._generated(entry, answer)
        elif kind == "scored":
            matches = score_matches(entry.targets, answer.scored.scores)
            self._must(self.worlds.is_at(answer.position, matches), entry, "a score")
        if kind in ("batch_stepped", "fed", "generated", "scored"):
            self.used_at_s = max(self.used_at_s, entry.sent.sent_at_s)
            if self.unexplained and self.is_usable:
                self.check_settled()
                self.unexplained.clear()

    def _check_free(self, entry: Entry, answer: pb.StreamResponse) -> None:
        """An opening has succeeded, which a stored session of that id forbids, and a Close that was answered."""
        if not entry.is_resume and entry.before is Presence.PRESENT and self.floor is not None:
            if self._now() < self.lives_until_s:
                self._violate(f"{entry.sent} gets the id of a stored session")
        if entry.is_resume and entry.before is Presence.ABSENT and self._closer_lives():
            self._violate(f"{entry.sent} brings a session back that should not be there, at position {answer.position}")

    def _open_failed(self, entry: Entry, error: object) -> None:
        reason = error.reason  # type: ignore[attr-defined]  # a carousel.v1.Error
        if self.stream is entry.sent.stream and not any(one.sent.kind == "open" for one in self.queue):
            self.stream = None
        self.presence = entry.before
        if entry.is_resume and reason == "SESSION_NOT_FOUND":
            told = dict(error.metadata)  # type: ignore[attr-defined]  # as above
            is_early = self._now() < self.lives_until_s and entry.before is Presence.PRESENT
            if is_early and self.floor is not None and told.get("close_reason") not in ("client", "shutdown"):
                self._violate(f"{entry.sent}: it is not found ({told}), and was stored up to {self.floor}")
            is_told = told.get("close_reason") in ("client", "idle", "disconnect", "failed", "expired")
            self.presence = Presence.ABSENT if is_told else Presence.UNKNOWN  # it may be on another replica
            self.floor = None
        elif reason == "SESSION_ID_IN_USE" and entry.before is Presence.ABSENT and self._closer_lives():
            self._violate(f"{entry.sent} is refused: the id is in use, and there is no session of that id")
        elif reason == "SESSION_ID_IN_USE":
            self.presence = Presence.UNKNOWN if entry.before is not Presence.PRESENT else Presence.PRESENT

    @property
    def lives_until_s(self) -> float:
        """Until when it must be found, if nobody uses it: a little less than it was agreed."""
        lifetime_s = self.idle_timeout_s
        if self.action != pb.DISCONNECT_ACTION_FREE:
            lifetime_s = min(lifetime_s, self.duration_s)
        return self.floor_at_s + 0.8 * lifetime_s

    def _closer_lives(self) -> bool:
        """Whether the replica that answered Close has lived on; true when none has."""
        if self.closed_by is None:
            return True
        replica = self.closers.get(self.closed_by[0])
        return replica is not None and replica.is_up and replica.num_lives == self.closed_by[1]

    def _fed(self, entry: Entry, answer: pb.StreamResponse) -> None:
        matches = output_matches(answer.fed.outputs, entry.kind)
        position = answer.position
        if answer.fed.replayed:
            if entry.start is None or position != entry.start + len(entry.tokens):
                self._violate(f"{entry.sent} is told to be a repeat, at position {position}")
            self._must(self.worlds.is_at(position, matches), entry, "a repeated answer")
        else:
            is_possible = self.worlds.fed(entry.tokens, entry.start, position, matches, mark=entry.mark)
            self._must(is_possible, entry, "an answer")
        self._stored(entry, position)

    def _stepped(self, entry: Entry, answer: pb.BatchStepped, position: int) -> None:
        token = pb.StepOutput(position=position)
        if entry.kind == pb.OUTPUT_KIND_NEXT_TOKEN:
            token.tokens.add(id=answer.token_ids[entry.place])
        matches = output_matches([] if entry.kind == pb.OUTPUT_KIND_NONE else [token], entry.kind)
        if answer.replayed:  # the last batch of the stream is answered again as it was, wherever the session is since
            is_before = any(world.position >= position for world in self.worlds.now)
            is_possible = is_before and any(map(matches, self.worlds.known(position)))
            self._must(is_possible, entry, "a repeated answer")
            return
        is_possible = self.worlds.fed(entry.tokens, entry.start, position, matches, mark=False)
        self._must(is_possible, entry, "an answer")
        self._stored(entry, position)

    def _generated(self, entry: Entry, answer: pb.StreamResponse) -> None:
        assert entry.choosing is not None  # noqa: S101  # it was a generation
        tokens = [token.id for part in entry.sent.responses for token in part.generated.tokens]
        reason = answer.generated.finish_reason
        is_possible = self.worlds.generated(
            self._bases(entry), entry.choosing, entry.skipped, tokens, reason, answer.position
        )
        self._must(is_possible, entry, f"tokens {tokens} with finish reason {reason}")
        self._stored(entry, answer.position)

    def _failed(self, entry: Entry, error: object, position: int) -> None:
        reason, metadata = error.reason, error.metadata  # type: ignore[attr-defined]  # a carousel.v1.Error
        if reason in REFUSALS:
            is_here = self.is_usable and self.stream is entry.sent.stream and not self.is_closing
            if reason in ("SESSION_NOT_OPEN", "SESSION_NOT_FOUND") and is_here and entry.sent.kind != "step_batch":
                self._violate(f"{entry.sent} is refused with {reason}, and the session is open on that stream")
        elif reason == "POSITION_MISMATCH":
            if entry.start is not None:
                self._must(self.worlds.is_not_at(entry.start), entry, f"a refusal of position {entry.start}")
            if "position" in metadata:
                self._must(self.worlds.is_at(int(metadata["position"])), entry, f"position {metadata['position']}")
        else:
            self._may_have(entry)
            if reason == "CANCELLED":
                self._cancelled(entry, position)

    def _cancelled(self, entry: Entry, position: int) -> None:
        is_meant = self.num_cancels > entry.num_cancels or self.is_closing
        if not is_meant and self.is_usable and self.stream is entry.sent.stream:
            self.unexplained.append(entry.sent)
        stamp = entry.sent.stamp
        if self.is_strict and self.is_usable and not self.is_closing and self.name in stamp:
            stored = stamp[self.name]
            if stored is None or stored.position < position:
                at = "not at all" if stored is None else f"to {stored.position}"
                self._violate(f"{entry.sent} is cancelled at position {position}, and is stored {at}")

    def _may_have(self, entry: Entry) -> None:
        if entry.sent.kind == "open":
            if not entry.is_resume and entry.before is not Presence.PRESENT:
                self.model, self.action, self.duration_s = entry.opening
                self.worlds = Worlds([beginning(self.model)])
                self.presence = Presence.UNKNOWN
        elif entry.sent.kind in ("feed", "step_batch"):
            self.worlds.may_be_fed(entry.tokens, entry.start, mark=entry.mark)
        elif entry.choosing is not None:
            tokens = [token.id for part in entry.sent.responses for token in part.generated.tokens]
            is_possible = self.worlds.generates(self._bases(entry), entry.choosing, entry.skipped, tokens)
            self._must(is_possible, entry, f"tokens {tokens}")

    def _bases(self, entry: Entry) -> list[World]:
        """From where a generation may have begun."""
        if entry.start is None:
            return list(self.worlds.now)
        return self.worlds.known(entry.start)

    def part_stored(self, entry: Entry, position: int, stamp: object) -> None:
        """A part of a strict generation was told: it must be stored."""
        found = stamp.get(self.name, self)  # type: ignore[attr-defined]  # a Stamp
        if self.is_strict and not self.is_closing and self.is_usable and found is not self:
            at = -1 if found is None else found.position  # type: ignore[attr-defined]  # Stored
            if at < position:
                self._violate(f"{entry.sent}: tokens up to {position} are told, and the store has it at {at}")

    def _stored(self, entry: Entry, position: int) -> None:
        """What was answered at `position` must be in the store, if the session is strict."""
        stamp = entry.sent.stamp
        if not self.is_strict or self.is_closing or self.name not in stamp:
            return
        if self.stream is not entry.sent.stream:
            return
        stored = stamp[self.name]
        if stored is None:
            self._violate(f"{entry.sent} is answered at position {position}, and nothing is stored")
        elif stored.position < position:
            self._violate(f"{entry.sent} is answered at position {position}, and is stored to {stored.position}")
        elif stored.position == position and World(position, stored.hidden) not in self.worlds.now:
            self._violate(f"{entry.sent} is answered at position {position}, and another state is stored there")
        elif stored.position > position and not self.queue:
            self._violate(f"{entry.sent} is answered at position {position}, and an older {stored.position} is stored")
        self.floor, self.floor_at_s = position, max(self.floor_at_s, entry.sent.sent_at_s)

    def _must(self, is_possible: bool, entry: Entry, what: str) -> None:
        if not is_possible and self.is_exclusive:
            self._violate(f"{entry.sent}: {what} that the plain model does not give: {_short(entry.sent.answer)}")

    def _violate(self, text: str) -> None:
        if self.is_exclusive:
            self._journal.violate(f"{self}: {text}")

    def _now(self) -> float:
        return self._journal.now()


def _short(message: object) -> str:
    return " ".join(str(message).split())[:200]

"""Checks that answers about a session agree with the plain model and with what the server has promised.

An answer is applied when all requests sent before its request were applied.
"""

from __future__ import annotations

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.beliefs import Belief
from simulation.checks import Stamp
from simulation.entries import REFUSALS, Entry, Presence
from simulation.rows import Row, output_of, row_matches
from simulation.worlds import World, Worlds, first_world, output_matches, score_matches

_UNCERTAIN = {"SESSION_NOT_OPEN", "STORE_UNAVAILABLE", "SESSION_MOVED", "CANCELLED", "ENGINE_ERROR", "INTERNAL"}
"""Reasons of errors after which a failed opening may have left a record, until its server removes it."""
_GIVES_BACK = {"NO_SLOT", "QUEUE_FULL"}
"""Reasons of errors after which a replica gives an id back. The id is in use until then, or until its lease ends."""
_REFUSES_S = 0.5
"""Virtual seconds for which a replica does not ask its store again after a failure."""
_MAX_WORLDS = 2000
"""Maximum number of worlds that are followed for a session. Above it, the session is not checked any more."""


class Answers:
    """Checks the answers about one session."""

    def __init__(self, view: Belief) -> None:
        self._view = view

    def apply(self, entry: Entry) -> None:
        """Applies the answer to the oldest request of the queue."""
        view, answer = self._view, entry.sent.answer
        if entry.sent.kind == "open":
            self._opened(entry, answer)
            return
        view.take_news(entry.sent, answer)
        kind = answer.WhichOneof("response")
        is_unrecorded = entry.sent.kind == "close" and answer.error.reason == "STORE_UNAVAILABLE"
        if kind == "error" and not is_unrecorded:
            self._failed(entry, answer.error, answer.position)
        elif kind == "closed" or is_unrecorded:  # the server records the end as soon as the store works
            view.gone()
            view.closed_by = view.promised_by = entry.sent.stream.replica.life if is_unrecorded else None
        elif kind == "batch_stepped":
            row = self._row(entry, answer.batch_stepped)
            if answer.batch_stepped.replayed:
                self._repeated(entry, row)
            elif row.error is not None:
                self._failed(entry, row.error, row.position)
            else:
                self._stepped(entry, row)
                self._used(entry)
        elif kind in ("fed", "generated", "scored"):
            {"fed": self._fed, "generated": self._generated, "scored": self._scored}[kind](entry, answer)
            self._used(entry)

    def _opened(self, entry: Entry, answer: pb.StreamResponse) -> None:
        self._view.is_resuming = False
        if answer.HasField("error"):
            self._open_failed(entry, answer.error)
            return
        self._check_free(entry, answer)
        if entry.is_resume:
            self._view.resumed(entry.sent, answer)
        else:
            self._begin(entry)
            self._view.opened(entry.sent, answer)

    def _begin(self, entry: Entry) -> None:
        """Notes what the request to open asked for."""
        self._view.is_made = not entry.sent.request.session_id
        self._view.model, self._view.action, self._view.duration_s = entry.opening
        self._view.source = entry.source

    def _used(self, entry: Entry) -> None:
        """Notes that the session was used."""
        view = self._view
        view.used_at_s = max(view.used_at_s, entry.sent.sent_at_s)
        if view.unexplained and view.is_usable:
            view.check_settled()
            view.unexplained.clear()

    def _scored(self, entry: Entry, answer: pb.StreamResponse) -> None:
        matches = score_matches(entry.targets, answer.scored.scores)
        self._must(self._view.worlds.is_at(answer.position, matches), entry, "a score")

    def _check_free(self, entry: Entry, answer: pb.StreamResponse) -> None:
        """Checks an opening that succeeded: it must not, if a session with this id is stored, nor, for a resume, after
        a Close was answered."""
        is_stored = self._view.now() < self._view.lives_until_s
        if not entry.is_resume and self._view.may_be_there(entry):
            is_plain = answer.opened.durability == pb.DURABILITY_NONE and entry.opening[1] != pb.DISCONNECT_ACTION_KEEP
            if is_plain and entry.sent.stream.replica.store_trouble_s(entry.sent.sent_at_s - _REFUSES_S):
                self._view.is_exclusive = False  # plain sessions do not depend on the store: docs/decisions/0023
            if is_stored and entry.before is Presence.PRESENT:
                self._view.violate(f"{entry.sent} gets the id of a stored session")
        is_overlooked = self._view.may_be_overlooked(entry.sent.replica, entry.sent.sent_at_s)
        if not entry.is_resume and entry.before is not Presence.ABSENT and is_overlooked:
            self._view.is_exclusive = False  # two sessions have this id now: the store does not know the first
        is_closed = any(close.is_done and close.answer.HasField("closed") for close in entry.closes)
        if entry.is_resume and (is_closed or (entry.is_absent and self._view.closer_lives())):
            self._view.violate(
                f"{entry.sent} brings a session back that should not be there, at position {answer.position}"
            )

    def _open_failed(self, entry: Entry, error: error_pb2.Error) -> None:
        reason = error.reason
        self._view.not_opened(entry, is_found=reason != "SESSION_NOT_FOUND")
        if not entry.is_resume and reason in _UNCERTAIN:
            self.may_have(entry)
        elif entry.is_resume and reason == "SESSION_NOT_FOUND":
            facts = dict(error.metadata)
            is_early = self._view.must_be_found and entry.before is Presence.PRESENT
            if is_early and facts.get("close_reason") not in ("client", "shutdown"):
                self._view.violate(f"{entry.sent}: it is not found ({facts}), and was stored up to {self._view.floor}")
            self._not_found(entry)
        elif reason == "SESSION_ID_IN_USE" and entry.is_absent and self._view.closer_lives():
            self._view.violate(f"{entry.sent} is refused: the id is in use, and there is no session of that id")
        elif reason == "SESSION_ID_IN_USE":
            self._view.presence = Presence.UNKNOWN if entry.before is not Presence.PRESENT else Presence.PRESENT
        elif not entry.is_resume and reason in _GIVES_BACK and entry.is_absent:
            self._view.closed_by = entry.sent.stream.replica.life

    def _not_found(self, entry: Entry) -> None:
        """Notes that a replica found no session with the id. It may still exist only if another replica has it and
        does not store it, or is opening it."""
        view = self._view
        if view.where is entry.sent.stream.replica or (view.where is not None and view.is_stored):
            is_expired = view.may_be_expired(view.where, entry.sent.sent_at_s)
            view.presence = Presence.UNKNOWN if is_expired else Presence.ABSENT
            view.floor = None

    def _fed(self, entry: Entry, answer: pb.StreamResponse) -> None:
        matches = output_matches(answer.fed.outputs, entry.kind, entry.tokens)
        position = answer.position
        if answer.fed.replayed:
            if entry.start is None or position != entry.start + len(entry.tokens):
                self._view.violate(f"{entry.sent} is reported as a repeat, at position {position}")
                return
            is_possible = self._view.worlds.repeats(entry.tokens, entry.start, matches, may_have_gone_on=entry.is_again)
            self._must(is_possible, entry, "a repeated answer")
        else:
            is_possible = self._view.worlds.fed(entry.tokens, entry.start, position, matches, mark=entry.mark)
            self._must(is_possible, entry, "an answer")
        self._stored(entry, position)

    def _stepped(self, entry: Entry, row: Row) -> None:
        is_possible = self._view.worlds.fed(
            entry.tokens, entry.start, row.position, row_matches(entry, row), mark=False
        )
        self._must(is_possible, entry, "an answer")
        self._stored(entry, row.position)

    def _row(self, entry: Entry, answer: pb.BatchStepped) -> Row:
        """Returns the session's row of a step batch's answer."""
        errors = [error.error for error in answer.errors if error.index == entry.place]
        if len(errors) > 1:
            self._view.violate(f"{entry.sent} has {len(errors)} errors of it, and must have one")
        return Row(answer.positions[entry.place], output_of(entry, answer), errors[0] if errors else None)

    def _repeated(self, entry: Entry, row: Row) -> None:
        """Checks a repeated answer: the stream's last step batch, sent again, must be answered as before, even if its
        sessions have moved on. Answers that refused the whole step batch do not count."""
        answered = (one for one in reversed(entry.earlier) if one.responses)
        first = next((one for one in answered if one.answer.HasField("batch_stepped")), None)
        if first is None:
            self._view.violate(f"{entry.sent} is reported as a repeat, and no such step batch was answered before")
            return
        before = self._row(entry, first.answer.batch_stepped)
        if row == before:
            pass
        elif row.error is not None and self._is_unstored(row):
            self._failed(entry, row.error, row.position)
        elif self._is_unstored(before):  # the first answer reported an error instead of the row
            is_before = any(world.position >= row.position for world in self._view.worlds.now)
            ways = [] if entry.start is None else self._view.worlds.ways(entry.tokens, entry.start)
            is_possible = is_before and any(map(row_matches(entry, row), ways))
            self._must(is_possible or row.error is not None, entry, "a repeated answer")
        else:
            self._view.violate(f"{entry.sent} is answered again with {row}, and was answered {before}")
        if row.error is None:
            self._used(entry)

    @staticmethod
    def _is_unstored(row: Row) -> bool:
        """Whether the session processed its row, but an error of the store or the session's end replaced the answer."""
        return row.error is not None and row.error.reason in _UNCERTAIN

    def _generated(self, entry: Entry, answer: pb.StreamResponse) -> None:
        assert entry.choosing is not None  # noqa: S101  # because it is a generation
        tokens = [token.id for part in entry.sent.responses for token in part.generated.tokens]
        reason = answer.generated.finish_reason
        is_possible = self._view.worlds.generated(
            self._bases(entry),
            entry.choosing,
            tokens,
            reason,
            skipped=entry.skipped,
            position=answer.position,
            is_again=entry.is_again,
        )
        self._must(is_possible, entry, f"tokens {tokens} with finish reason {reason}")
        self._stored(entry, answer.position)

    def _failed(self, entry: Entry, error: error_pb2.Error, position: int) -> None:
        reason, metadata = error.reason, error.metadata
        if reason in REFUSALS:
            is_here = self._view.is_usable and self._view.home is entry.sent.stream and not self._view.is_closing
            if reason in ("SESSION_NOT_OPEN", "SESSION_NOT_FOUND") and is_here and entry.sent.kind != "step_batch":
                self._view.violate(f"{entry.sent} is refused with {reason}, and the session is open on that stream")
        elif reason == "POSITION_MISMATCH":
            if entry.start is not None:
                self._must(self._view.worlds.is_not_at(entry.start), entry, f"a refusal of position {entry.start}")
            if (reported := metadata.get("position")) is not None:
                self._must(self._view.worlds.is_at(int(reported)), entry, f"position {reported}")
        else:
            self.may_have(entry)
            if reason == "STORE_UNAVAILABLE" and entry.sent.kind in ("feed", "generate") and entry.start is not None:
                self._view.unstored.append(entry)
            if reason == "CANCELLED":
                self._cancelled(entry, position)
            if reason == "SESSION_MOVED" and entry.is_close:
                self._view.moved(entry.sent.stream)

    def _cancelled(self, entry: Entry, position: int) -> None:
        is_meant = self._view.num_cancels > entry.num_cancels or self._view.is_closing
        if not is_meant and self._view.is_usable and self._view.stream is entry.sent.stream:
            self._view.unexplained.append(entry.sent)
        stamp = entry.sent.stamp
        if self._view.is_strict and self._view.is_usable and not self._view.is_closing and self._view.name in stamp:
            stored = stamp[self._view.name]
            is_lost = stored is None and self._view.may_be_expired(entry.sent.stream.replica)
            at = 0 if stored is None else stored.position
            if at < position and not (is_lost or self._view.is_forgotten):
                self._view.violate(f"{entry.sent} is cancelled at position {position}, and is stored to {at}")

    def may_have(self, entry: Entry) -> None:
        """Notes that a request will not be answered. It may be done, done in part, or not done."""
        if entry.sent.kind == "open":
            is_free = entry.before is not Presence.PRESENT or self._view.now() >= self._view.lives_until_s
            if not entry.is_resume and is_free:
                if self._view.may_be_there(entry):
                    self._view.is_exclusive = False  # the session is the new one, the earlier one, or there are both
                self._begin(entry)
                self._view.opened_at_s = min(self._view.opened_at_s, entry.sent.sent_at_s)
                self._view.worlds = Worlds([first_world(self._view.model, self._view.source)])
                self._view.presence = Presence.UNKNOWN
                self._view.where = None
        elif not self._view.is_exclusive:
            pass  # the session is not checked any more
        elif entry.sent.kind in ("feed", "step_batch"):
            self._view.worlds.may_be_fed(entry.tokens, entry.start, mark=entry.mark)
        elif entry.choosing is not None:
            tokens = [token.id for part in entry.sent.responses for token in part.generated.tokens]
            is_possible = self._view.worlds.generates(self._bases(entry), entry.choosing, entry.skipped, tokens)
            self._must(is_possible, entry, f"tokens {tokens}")
        if len(self._view.worlds.now) > _MAX_WORLDS:
            self._view.is_exclusive = False

    def _bases(self, entry: Entry) -> list[World]:
        """Returns the worlds in which a generation may have begun."""
        if entry.start is None:
            return list(self._view.worlds.now)
        return self._view.worlds.known(entry.start)

    def part_stored(self, entry: Entry, position: int, stamp: Stamp) -> None:
        """Checks that the delivered part of a strict generation is stored."""
        view = self._view
        if view.is_strict and not view.is_closing and view.is_usable and view.name in stamp:
            found = stamp[view.name]
            at = -1 if found is None else found.position
            is_expired = found is None and view.may_be_expired(entry.sent.stream.replica)
            if at < position and not is_expired:
                self._view.violate(f"{entry.sent}: tokens up to {position} are reported, and the store has it at {at}")

    def _stored(self, entry: Entry, position: int) -> None:
        """Checks that an answer at `position` is stored, if the session is strict."""
        stamp = entry.sent.stamp
        is_strict = self._view.is_strict and not self._view.is_closing and self._view.name in stamp
        if not is_strict or self._view.stream is not entry.sent.stream:
            return
        stored, was_lost = stamp[self._view.name], self._view.forgotten_at_s >= entry.sent.sent_at_s
        if stored is None:
            if not (was_lost or self._view.may_be_expired(entry.sent.stream.replica)):
                self._view.violate(f"{entry.sent} is answered at position {position}, and nothing is stored")
            return
        if stored.position < position:
            self._view.violate(f"{entry.sent} is answered at position {position}, and is stored to {stored.position}")
        elif stored.position == position and World(position, stored.hidden) not in (
            self._view.worlds.known(position) if entry.is_again else self._view.worlds.now
        ):
            self._view.violate(f"{entry.sent} is answered at position {position}, and another state is stored there")
        elif stored.position > position and self._view.newest is entry and not entry.is_again:
            self._view.violate(f"{entry.sent} is answered at position {position}; an older {stored.position} is stored")
        if not (was_lost or self._view.is_forgotten):
            self._view.floor, self._view.floor_at_s = position, max(self._view.floor_at_s, entry.sent.sent_at_s)

    def _must(self, is_possible: bool, entry: Entry, what: str) -> None:
        if not is_possible and self._view.is_exclusive:
            self._view.violate(f"{entry.sent}: {what} that the plain model does not give: {_short(entry.sent.answer)}")


def _short(message: object) -> str:
    return " ".join(str(message).split())[:200]

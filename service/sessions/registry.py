"""Carries out what the lifecycle table says when sessions start, change their stream, and end.

`lifecycle.TABLE` has the rules; each action at a session's end has one method here. Does not open, spill or expire
sessions: see `opening`, `spill` and `expiry`. Event loop only; times come from the injected clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.engine.jobs import Lane
from service.engine.results import Failed
from service.errors import CarouselError, SessionNotOpenError, ShuttingDownError, StoreUnavailableError, guarded
from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.deferral import Deferral
from service.sessions.directory import Directory
from service.sessions.ending import Ending, LastRecords
from service.sessions.generation import Generation
from service.sessions.leases import Leases
from service.sessions.lifecycle import HOLDS_SLOT, Action, Event, State
from service.sessions.persistence import PLAIN_PERSISTENCE, Durability, OnDisconnect, WhenDone
from service.sessions.served import Served
from service.sessions.session import CloseReason, OnEnded, Session, no_stream
from service.sessions.storage import Storage
from service.sessions.tombstones import Tombstone, Tombstones, unfinished_error
from service.sessions.watches import Change, Watches


class Registry:
    """The sessions of this server. interval_s, num_tokens: see `Checkpoints`. idle_timeout_s: see `Leases`.
    on_elsewhere: called for an ended session that another server owns. clock, wall_clock: monotonic, Unix seconds."""

    def __init__(
        self,
        directory: Directory,
        deferral: Deferral,
        watches: Watches,
        observer: SessionObserver,
        *,
        storage: Storage,
        interval_s: float,
        num_tokens: int,
        idle_timeout_s: float,
        num_tombstones: int,
        max_replay_bytes: int,
        on_elsewhere: Callable[[Session, Ending], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.is_draining = False
        self._on_elsewhere = on_elsewhere
        self.tombstones = Tombstones(num_tombstones, max_replay_bytes)
        self.directory = directory
        self.deferral = deferral
        self.watches = watches
        self.observer = observer
        self.clock, self.wall_clock = clock, wall_clock
        self.held: dict[str, Session] = {}  # detached sessions whose time runs; a visited one is not among them
        self.last_records = LastRecords(storage, delay_s=interval_s)
        self.leases = Leases(
            storage,
            deferral,
            on_lost=self.lose,
            on_missing=self._rewrite,
            on_more_stored=watches.more_stored,
            ages=directory.ages,
            idle_timeout_s=idle_timeout_s,
            clock=clock,
        )
        self.checkpoints = Checkpoints(
            storage,
            self.last_records,
            self.leases,
            on_used=self.used,
            interval_s=interval_s,
            num_tokens=num_tokens,
            clock=clock,
        )
        self._last_serial = 0
        self._on_end: dict[Action, Callable[[Session, Ending], None]] = {
            Action.REFUSE_DEFERRED: self._refuse_deferred,
            Action.FREE_SLOT: self._free_slot,
            Action.RECORD_END: self._record_end,
            Action.RELEASE: self._release,
            Action.NOTIFY_STREAM: self._notify_stream,
        }

    def get(self, session_id: str) -> Session:
        """Returns this server's session. Raises SessionNotFoundError, with the reason for its end if known."""
        session = self.directory.get(session_id)
        if session is None:
            raise self.tombstones.not_found(session_id)
        return session

    def here(self, session: Session) -> Session:
        """Returns the session. Raises the reason when it has ended; its stream may be notified later."""
        if session.is_over:
            raise session.persistence.moved or self.tombstones.not_found(session.id)
        return session

    def used(self, session: Session) -> None:
        """Marks a session as used now."""
        if not session.is_over:
            self.directory.touch(session, self.clock())

    def check_open(self) -> None:
        """Checks the lease. Raises ShuttingDownError when this server opens no more sessions."""
        self.leases.check()
        if self.is_draining:
            raise ShuttingDownError("the server is shutting down: send it to another server", retry_delay_s=1.0)

    def make(self, served: Served, session_id: str, lane: Lane, on_ended: OnEnded) -> Session:
        """Returns a new session in OPENING, which is not in the directory yet. lane: a placeholder until `start`."""
        self._last_serial = max(self._last_serial + 1, int(self.wall_clock() * 1e6))
        session = Session(session_id, self._last_serial, served, lane, on_ended, last_used_s=self.clock())
        self.deferral.suspend(session)
        return session

    def start(self, session: Session, lane: Lane) -> None:
        """Gives a session in OPENING its slot. The caller must then call `Deferral.run`."""
        session.lane = lane
        self.directory.move(session, session.transition_for(Event.START).state)
        self.directory.touch(session, self.clock())
        if session.persistence.has_record:
            self.leases.add(session)
        self.observer.session_opened(session.served.model, session.served.version, session.id)

    def fail(self, session: Session, error: CarouselError) -> None:
        """Ends a session in OPENING that cannot be opened because of `error`. Its deferred requests are refused. A
        session that came from the store stays there, and any server can resume it."""
        told = f"session {session.name!r} could not be opened: {error.message}"
        self.deferral.refuse(session, SessionNotOpenError(told, field="session_id"))
        event = Event.HAND_OVER if session.persistence.is_in_store else Event.FAIL
        self._apply(session, event, Ending(CloseReason.FAILED, notifies=False))

    def attach(self, session: Session, on_ended: OnEnded) -> None:
        """Attaches a session to a stream. The stream that had it before is notified."""
        session.check(Event.RESUME)
        if not session.is_detached:
            session.on_ended(session, CloseReason.TAKEN)
        session.on_ended, session.handle = on_ended, 0
        last = session.last
        if isinstance(last, Generation) and last.request is not None:
            listener, last.request = last.request, None
            listener.deliver(Failed(session.position, unfinished_error(session, CloseReason.TAKEN)))
        if session.persistence is not PLAIN_PERSISTENCE:
            session.persistence.is_attached, session.persistence.reported_position = True, None
        self.held.pop(session.id, None)
        self.directory.touch(session, self.clock())
        self.watches.changed(session, Change.ATTACHED)

    def detach(self, session: Session) -> None:
        """Applies the session's policy after its stream ended."""
        if session.is_over:
            return
        policy = session.policy
        if self.is_draining and policy.is_stored:
            self.hand_over(session)
        elif policy.on_disconnect is OnDisconnect.FREE:
            self.close(session, CloseReason.DISCONNECT, notify=False)
        else:
            session.check(Event.DETACH)
            session.on_ended, session.own_persistence().is_attached = no_stream, False
            self.hold(session, policy.duration_s)
            self.observer.session_detached(session.served.model, session.served.version, session.id)
            self.watches.changed(session, Change.DETACHED)
            self.keep(session)

    def keep(self, session: Session) -> None:
        """Stores a detached session soon, if its policy stores it."""
        if session.policy.is_stored:
            if session.policy.durability is Durability.NONE:
                self.checkpoints.changed(session)  # this policy stores a session only once it is detached
            self.checkpoints.hasten(session)

    def hold(self, session: Session, duration_s: float) -> None:
        """Keeps a detached session for `duration_s`."""
        session.own_persistence().held_until_s = self.clock() + duration_s
        self.held[session.id] = session

    def close(self, session: Session, reason: CloseReason, *, notify: bool, then: WhenDone | None = None) -> None:
        """Ends a session for good. Does nothing when it has ended already.

        notify: whether its own stream is notified. then: called when all requests are answered and the store has the
        end, or with StoreUnavailableError.
        """
        if not session.is_over:
            event = Event.EXPIRE if reason is CloseReason.EXPIRED else Event.CLOSE
            self._apply(session, event, Ending(reason, notifies=notify, then=then))
        elif then is not None:
            then(None)

    def hand_over(self, session: Session, reason: CloseReason = CloseReason.MOVED) -> None:
        """Ends a session here, stores it for any server to resume, and notifies its stream. Closes an unopened one."""
        if session.state is State.OPENING and not session.persistence.is_in_store:
            self.close(session, CloseReason.SHUTDOWN, notify=True)
        elif not session.is_over:
            self._apply(session, Event.HAND_OVER, Ending(reason, notifies=True))

    def lose(self, session: Session) -> None:
        """Ends a session that another server owns. This server's copy is discarded."""
        if not session.is_over:
            self._apply(session, Event.LOSE, Ending(CloseReason.MOVED, notifies=True))

    def _rewrite(self, session: Session) -> None:
        """Stores a session whose record the store has lost. Closes a spilled one: memory has no copy."""
        if session.state is State.SPILLED:
            self.close(session, CloseReason.LOST, notify=True)
        else:
            self.checkpoints.rewrite(session)

    def _apply(self, session: Session, event: Event, end: Ending) -> None:
        """Removes a session from the server and carries out the actions of the table."""
        transition = session.transition_for(event)
        end.before = session.state
        self.directory.move(session, transition.state)
        self.directory.remove(session)
        self.held.pop(session.id, None)
        self.checkpoints.end(session)
        self.watches.ended(session, end.reason)
        tombstone = end.tombstone = Tombstone(end.reason, session.position, self.wall_clock())
        is_known = session.persistence.is_in_store and end.reason is not CloseReason.FAILED
        if end.before is not State.OPENING or is_known:
            self.tombstones.add(session.id, tombstone)
        if end.before in (State.SPILLED, State.RESTORING):
            self.observer.session_unspilled(session.served.model, session.served.version, session.id)
        if not (session.num_in_flight and end.before in HOLDS_SLOT):  # else its position is not final yet
            end.report_closed(self.observer, session)
        for action in transition.actions:
            guarded(self._on_end[action], session, end)

    def _refuse_deferred(self, session: Session, end: Ending) -> None:
        """Refuses deferred requests, and answers that wait for the store unless the last record decides those."""
        error = unfinished_error(session, end.reason)
        if not session.persistence.is_releasing:
            session.persistence.resolve(None, error)
        self.deferral.refuse(session, error)

    def _free_slot(self, session: Session, end: Ending) -> None:
        def freed() -> None:  # every request is answered: the position is final
            end.tombstone = self.tombstones.correct(session.id, end.tombstone, session.position)
            end.freed(self.observer, session)

        if end.before in HOLDS_SLOT:
            session.served.engine.close(session.lane, freed, unfinished_error(session, end.reason))
        else:
            freed()

    def _record_end(self, session: Session, end: Ending, ended: Callable[[], None] | None = None) -> None:
        """Records the end of a session that has a record. Deletes the record of a session that was never open or that
        no other server could resume. ended: the callback of `Directory.begin_ending`, if it was called already."""
        claiming = session.persistence.after_claim
        if claiming is not None:
            ended = self.directory.begin_ending(session.id)
            claiming.append(lambda: self._record_end(session, end, ended))
            return
        if session.num_in_flight and end.before in HOLDS_SLOT and not end.is_freed:  # its position is not final
            ended = ended or self.directory.begin_ending(session.id)
            end.after_freed = lambda: self._record_end(session, end, ended)
            return
        if not session.persistence.has_record:
            self._recorded(session, end, None, ended)
            return
        is_new = end.before is State.OPENING and not session.persistence.is_in_store
        is_remembered = session.policy.is_stored and not is_new
        ended = ended or self.directory.begin_ending(session.id)
        self.last_records.record_end(
            session.id,
            session.persistence.epoch,
            end.tombstone.encode() if is_remembered and end.tombstone is not None else None,
            lambda error: self._recorded(session, end, error, ended),
            record_id=session.persistence.record_id,
        )

    def _release(self, session: Session, end: Ending, ended: Callable[[], None] | None = None) -> None:
        """Stores a session so that any server can claim it. The answers and the notification of a strict session wait
        for that. ended: see `_record_end`."""
        persistence, ended = session.own_persistence(), ended or self.directory.begin_ending(session.id)
        if persistence.after_claim is not None:
            persistence.after_claim.append(lambda: self._release(session, end, ended))
            return
        persistence.moved = unfinished_error(session, CloseReason.MOVED)
        has_slot = end.before in HOLDS_SLOT
        if persistence.policy.durability is Durability.STRICT:
            persistence.is_releasing = has_slot and bool(persistence.awaiting or session.num_in_flight)

        def answer_waiting() -> None:
            if persistence.is_releasing:
                persistence.is_releasing = False
                persistence.resolve(persistence.stored, None)
                persistence.resolve(None, persistence.moved)
                self._notify_stream(session, end)

        def stored() -> None:
            answer_waiting()
            self._recorded(session, end, None, ended)

        self.checkpoints.release(session, stored, answer_waiting, has_slot=has_slot)

    def _recorded(
        self, session: Session, end: Ending, error: CarouselError | None, ended: Callable[[], None] | None = None
    ) -> None:
        """Handles the result of the last record: stored (None), owned by another server, or failed for now."""
        end.is_answered_by_store, end.error = True, error
        end.call_then()
        if isinstance(error, StoreUnavailableError):
            end.is_promised = end.reason is CloseReason.CLIENT
            return
        if error is not None:
            self._on_elsewhere(session, end)
        session.state = session.transition_for(Event.RECORD).state
        if ended is not None:
            ended()

    def _notify_stream(self, session: Session, end: Ending) -> None:
        if end.notifies and not session.persistence.is_releasing:
            session.on_ended(session, end.reason)

"""A client's calls of `Sessions` and `Models`, and the checks of their answers."""

from __future__ import annotations

import asyncio
from typing import Any

from carousel.v1 import error_pb2, sessions_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.adapters import EPOCH, stored_in
from simulation.bare import Bare
from simulation.bundles import LISTENER
from simulation.connections import Connections
from simulation.entries import Call, Presence
from simulation.states import after, from_messages, set_to
from simulation.views import View
from simulation.worlds import World, Worlds

_CALL_S = 20.0
_DEADLINE_S = 30.0
_MOST_VIEWS = 6


class Admin:
    """Makes the calls of one client."""

    def __init__(self, client: Connections) -> None:
        self._client = client
        self._snapshots: list[tuple[bytes, str, str]] = []
        self._last = 0

    async def perform(self, op: str, view: View, *, slot: int, **args: Any) -> None:
        """Performs one action of the script."""
        if op != "restore" and not (view.name and view.presence is Presence.PRESENT):
            return
        if op in ("rewind", "set_state", "admin_close", "snapshot", "fork", "get_state") and not (
            await self._client.settle(view)
        ):
            return
        # Calls the replica that has the session. Another replica would fetch the session, and its stream would be
        # notified.
        replicas = self._client.replicas
        if view.stream is not None:
            slot = next((at for at, one in enumerate(replicas) if one is view.stream.replica), slot)
        if replicas[slot].is_up:
            await getattr(self, f"_{op}")(view, slot, **args)

    async def call(self, slot: int, method: str, request: Any) -> Any:
        """Makes one call. Returns its response, a `carousel.v1.Error`, or None if its server died or did not answer."""
        journal = self._client.journal
        replica = self._client.replicas[slot]
        life = replica.life
        journal.note(f"{self._client.name}@{life.name} > {method} {' '.join(str(request)[:150].split())}")
        task = replica.call(method, request)
        done, _ = await asyncio.wait([task], timeout=_DEADLINE_S)
        if not done:
            task.cancel()
            if not life.is_over:
                journal.violate(f"{self._client.name}: {method} on {life.name} was not answered in {_DEADLINE_S:g} s")
            return None
        if task.cancelled() or life.is_over:
            return None
        journal.note(f"{self._client.name}@{life.name} < {method} {' '.join(str(task.result())[:150].split())}")
        return task.result()

    async def _use(self, view: View, slot: int, method: str, request: Any) -> Any:
        """Makes a call for which a replica fetches the session from another replica. Returns the same as `call`."""
        journal = self._client.journal
        want = Call(self._client.replicas[slot], journal.now())
        view.wants.append(want)
        found = await self.call(slot, method, request)
        want.ended_at_s, want.is_lost = journal.now(), found is None
        return found

    async def _get(self, view: View, slot: int) -> None:
        was_quiet, newest = self._is_quiet(view), view.newest
        found = await self.call(slot, "Sessions.Get", sessions_pb2.SessionsGetRequest(session_id=view.name))
        is_quiet = was_quiet and view.newest is newest and self._is_quiet(view)  # from before the call until its answer
        if isinstance(found, sessions_pb2.SessionsGetResponse) and is_quiet:
            self._must(view, view.worlds.is_at(found.session.position), f"Get says {found.session.position}")

    async def _list(self, view: View, slot: int) -> None:
        limit = self._client.replicas[slot].knobs.max_sessions
        found = await self.call(slot, "Sessions.List", sessions_pb2.SessionsListRequest())
        if isinstance(found, sessions_pb2.SessionsListResponse) and found.total_count > limit:
            self._client.journal.violate(f"List counts {found.total_count} sessions, and the limit is {limit}")

    async def _admin_close(self, view: View, slot: int) -> None:
        view.num_closings += 1
        found = await self._use(view, slot, "Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id=view.name))
        view.num_closings -= 1
        if isinstance(found, sessions_pb2.SessionsCloseResponse):
            replica = self._client.replicas[slot]
            view.lost()
            view.gone()
            view.closed_by, view.promised_by = replica.life, None
            return
        if isinstance(found, error_pb2.Error) and "is closed on this server" in found.message:
            view.promised_by = self._client.replicas[slot].life
        view.may_be_closed = True
        if view.presence is Presence.PRESENT:
            view.presence = Presence.UNKNOWN

    async def _snapshot(self, view: View, slot: int) -> None:
        found = await self._use(
            view, slot, "Sessions.Snapshot", sessions_pb2.SessionsSnapshotRequest(session_id=view.name)
        )
        if not isinstance(found, sessions_pb2.SessionsSnapshotResponse):
            return
        stored = stored_in(found.snapshot)
        if self._is_quiet(view):
            world = World(stored.position, stored.hidden)
            self._must(view, view.worlds.is_at(stored.position, lambda one: one == world), f"a snapshot of {world}")
            self._snapshots.append((found.snapshot, view.model, view.name))

    async def _restore(self, view: View, slot: int, number: int) -> None:
        if not self._snapshots:
            return
        snapshot, model, name = self._snapshots[number % len(self._snapshots)]
        self._last += 1
        name = f"{self._client.name}r{self._last}"
        request = sessions_pb2.SessionsRestoreRequest(snapshot=snapshot, session_id=name)
        found = await self.call(slot, "Sessions.Restore", request)
        if isinstance(found, sessions_pb2.SessionsRestoreResponse):
            stored = stored_in(snapshot)
            worlds = [World(stored.position, stored.hidden)]
            self._add(name, model, worlds, found.session, stored.opened_at - EPOCH)

    async def _fork(self, view: View, slot: int, number: int) -> None:
        self._last += 1
        name = f"{self._client.name}f{self._last}"
        request = sessions_pb2.SessionsForkRequest(session_id=view.name, fork_session_id=name)
        found = await self._use(view, slot, "Sessions.Fork", request)
        if isinstance(found, sessions_pb2.SessionsForkResponse) and self._is_quiet(view):
            self._add(name, view.model, list(view.worlds.now), found.session, view.opened_at_s)

    async def _rewind(self, view: View, slot: int, number: int) -> None:
        if not view.worlds.marks:
            return
        marks = sorted(view.worlds.marks)
        position = marks[number % len(marks)]
        request = sessions_pb2.SessionsRewindRequest(session_id=view.name, position=position)
        found = await self._use(view, slot, "Sessions.Rewind", request)
        if isinstance(found, sessions_pb2.SessionsRewindResponse):
            is_stored = view.durability not in (pb.DURABILITY_NONE, pb.DURABILITY_UNSPECIFIED)
            self._must(view, view.worlds.rewound(position, is_stored=is_stored), f"Rewind to {position}")
            self._went_back(view, position)
        elif self._may_be_done(found):
            before = list(view.worlds.now)
            view.worlds.now += view.worlds.known(position)
            view.worlds.now = list(dict.fromkeys([*before, *view.worlds.now]))
            self._went_back(view, position)

    async def _get_state(self, view: View, slot: int) -> None:
        found = await self._use(
            view, slot, "Sessions.GetState", sessions_pb2.SessionsGetStateRequest(session_id=view.name)
        )
        if isinstance(found, sessions_pb2.SessionsGetStateResponse) and self._is_quiet(view):
            state = from_messages(view.worlds.now[0].hidden, found.tensors)
            world = World(found.position, after(state, found.pending_token_ids))
            self._must(view, view.worlds.is_at(found.position, lambda one: one == world), f"the state of {world}")
            if isinstance(state, Bare) and state.model == LISTENER:
                emitted = ([token.id for token in found.emitted], found.num_emitted)
                self._must(view, emitted == state.emitted_so_far, f"tokens so far {emitted}")

    async def _set_state(self, view: View, slot: int, number: int) -> None:
        seen = await self._use(
            view, slot, "Sessions.GetState", sessions_pb2.SessionsGetStateRequest(session_id=view.name)
        )
        if not isinstance(seen, sessions_pb2.SessionsGetStateResponse) or not self._is_quiet(view):
            return
        tensor = set_to(seen.tensors[0], number)
        request = sessions_pb2.SessionsSetStateRequest(session_id=view.name, tensors=[tensor])
        found = await self._use(view, slot, "Sessions.SetState", request)
        state = from_messages(view.worlds.now[0].hidden, [tensor, *seen.tensors[1:]])
        world = World(seen.position, after(state, seen.pending_token_ids))
        if isinstance(found, sessions_pb2.SessionsSetStateResponse):
            view.worlds.set_to([world])
            self._went_back(view, seen.position)
        elif self._may_be_done(found):
            view.worlds.set_to([*view.worlds.now, world])
            self._went_back(view, seen.position)

    def _add(
        self, name: str, model: str, worlds: list[World], info: sessions_pb2.SessionInfo, opened_at_s: float
    ) -> None:
        """Adds a session that was made from another one. opened_at_s: that of the other session, see `Belief`."""
        client = self._client
        if len(client.views) >= _MOST_VIEWS:
            return
        view = client.new_view(name, model)
        view.worlds = Worlds(worlds)
        view.presence = Presence.UNKNOWN
        view.opened_at_s = opened_at_s
        view.durability = info.durability
        client.views.append(view)

    @staticmethod
    def _may_be_done(found: Any) -> bool:
        """Whether a change may have been made although it was not confirmed."""
        return found is None or (
            isinstance(found, error_pb2.Error) and found.reason in ("STORE_UNAVAILABLE", "CANCELLED")
        )

    @staticmethod
    def _went_back(view: View, position: int) -> None:
        view.last = None
        view.unstored.clear()
        if view.floor is not None:
            view.floor = min(view.floor, position)

    @staticmethod
    def _is_quiet(view: View) -> bool:
        is_known = len(view.worlds.positions) == 1 and view.is_exclusive
        return is_known and view.is_usable and not view.queue

    def _must(self, view: View, is_possible: bool, what: str) -> None:
        if not is_possible:
            self._client.journal.violate(f"{view}: {what}, which the plain model does not give")

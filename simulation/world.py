"""One simulation: replicas, a store, clients and injected faults, on one virtual clock."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from carousel.v1 import inference_pb2 as pb
from simulation.adapters import EPOCH, deterministic
from simulation.bundles import LAZY
from simulation.checks import Journal, StoreChecks, check_bounds, check_empty, stamps, stored
from simulation.clients import Client
from simulation.knobs import Knobs, Tenant
from simulation.loop import SimulatedLoop, Stalled, delays
from simulation.script import NATURE, Action
from simulation.store import Faults, SharedRecords
from simulation.streams import ClientStream
from simulation.system import Replica

_ANSWER_S = 20.0
"""Virtual seconds within which every request must be answered after the last fault."""
_END_S = 5.0
"""Virtual seconds within which a stream must end after its client has half-closed and everything is answered."""
_CALM_S = 4.0
"""Virtual seconds after the last fault, from which on every session can be resumed or is reported as gone."""
_EMPTY_S = 6.0
"""Virtual seconds after which nothing of disconnected clients may be left."""
_WIRE_S = 0.002
_STORE_S = 0.004


class World:
    """The simulated world. `simulate` creates it on the simulated loop. knobs: limits of all replicas; seed: seeds all
    random draws."""

    def __init__(self, loop: SimulatedLoop, knobs: Knobs, seed: str) -> None:
        self.journal = Journal(loop.time)
        self.loop = loop
        self.knobs = knobs
        wall_clock: Callable[[], float] = lambda: EPOCH + loop.time()  # noqa: E731  # passed on, twice
        checks = StoreChecks(self.journal, knobs.max_age_s, wall_clock)
        self.shared = SharedRecords(clock=wall_clock, lease_s=knobs.lease_s, on_change=checks.changed)
        self.faults = Faults(random.Random(f"{seed}/store"), wall_clock)
        self.delay = delays(random.Random(f"{seed}/wire"), _WIRE_S)
        self.replicas = [
            Replica(
                name, self.shared, self.faults, knobs, rng=random.Random(f"{seed}/{name}"), on_bug=self.journal.violate
            )
            for name in "ABCDE"[: knobs.num_replicas]
        ]
        self.clients: list[Client] = []
        self.streams: list[ClientStream] = []
        self.journal.look = self._look
        loop.set_exception_handler(self._uncaught)

    async def start(self) -> None:
        """Starts the replicas."""
        for replica in self.replicas:
            await replica.start()

    def connect(self, slot: int = 0, caller: Tenant | None = None) -> ClientStream:
        """Returns a new stream whose answers no client model checks. For scenarios."""
        name = f"stream{len(self.streams)}"
        stream = ClientStream(name, self.replicas[slot], self.journal, self.delay, caller=caller)
        self.streams.append(stream)
        return stream

    async def call(self, method: str, request: Any, slot: int = 0, caller: Tenant | None = None) -> Any:
        """Makes one call and returns its response, or a `carousel.v1.Error`."""
        return await asyncio.wait_for(self.replicas[slot].call(method, request, caller), 60.0)

    def stored(self, session_id: str) -> Any:
        """Returns the store's record of a session."""
        return stored(self.shared, session_id)

    async def perform(self, actions: list[Action]) -> None:
        """Performs a script."""
        actors = sorted({action.actor for action in actions})
        for number in range(max(actors, default=0) + 1):
            self.clients.append(Client(number, self.replicas, self.journal, self.delay, partial(stamps, self.shared)))
        tasks = [
            asyncio.create_task(self._act([action for action in actions if action.actor == actor])) for actor in actors
        ]
        for task in tasks:
            await task

    async def finish(self) -> None:
        """Ends all faults, waits for answers, disconnects the clients, and checks that nothing is left."""
        await self._heal()
        streams = [*self.streams, *(stream for client in self.clients for stream in client.all_streams)]
        streams = [stream for stream in streams if not (stream.is_over or stream.has_left)]
        await self._wait_for_answers(streams)
        for client in self.clients:
            for view in client.views:
                view.check_settled()
        for number, stream in enumerate(streams):
            if stream.has_half_closed or number % 2 == 0:
                stream.half_close()
                if not await stream.wait_over(_END_S):
                    self.journal.violate(
                        f"{stream.name} does not end although all is answered and its client has half-closed"
                    )
            stream.leave()
        await self._have_all()
        await asyncio.sleep(_EMPTY_S)
        for replica in self.replicas:
            check_bounds(self.journal, replica)
            check_empty(self.journal, replica)

    async def _heal(self) -> None:
        """Ends all faults and starts replicas that are down."""
        self.faults.outages.clear()
        self.faults.error_rate, self.faults.is_down = 0.0, False
        self.faults.cuts.clear()
        self.loop.slowness_s = 0.0
        for replica in self.replicas:
            replica.graph_error_rate = 0.0
            if not replica.is_up:
                await replica.start()

    async def _wait_for_answers(self, streams: list[ClientStream]) -> None:
        for stream in streams:
            stream.set_reading(True)
        deadline = self.journal.now() + _ANSWER_S
        for sent in [sent for stream in streams for sent in stream.unanswered]:
            if not await sent.wait(max(0.0, deadline - self.journal.now())):
                self.journal.violate(f"{sent} is never answered")

    async def _have_all(self) -> None:
        """Resumes every session, opens those that are gone again under their ids, and closes all."""
        await asyncio.sleep(_CALM_S)
        names = sorted({view.name for client in self.clients for view in client.views if view.name})
        for number, name in enumerate(names):
            stream = self.connect(number % len(self.replicas))
            answer = await stream.ask(name, open=pb.Open(resume=pb.Resume()))
            if answer.error.reason == "SESSION_NOT_FOUND":
                answer = await stream.ask(name, open=pb.Open(model=LAZY, durability=pb.DURABILITY_CHECKPOINT))
            is_full = answer.error.reason in ("TOO_MANY_SESSIONS", "NO_SLOT")
            if answer.HasField("opened"):
                await stream.ask(name, close=pb.Close())
            elif not (is_full or "is the id of two sessions" in answer.error.message):
                self.journal.violate(
                    f"{_CALM_S:g} s after the last fault {name!r} can neither be resumed nor opened:"
                    f" {answer.error.reason}: {answer.error.message}"
                )
            stream.leave()

    async def stop(self) -> None:
        """Kills all replicas and tasks, so that the loop can be closed."""
        for replica in self.replicas:
            replica.kill()
        for _ in range(20):
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.01)

    async def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if action.pause_s:
                await asyncio.sleep(action.pause_s)
            if self.journal.violations:
                return
            self.journal.note(f"-- {action}")
            if action.actor == NATURE:
                await self._strike(action)
            else:
                await self.clients[action.actor].perform(action)
            self._look()

    def _look(self) -> None:
        for replica in self.replicas:
            if replica.is_up:
                check_bounds(self.journal, replica)

    async def _strike(self, action: Action) -> None:
        duration_s, replica = action.args["duration_s"], self.replicas[action.args["replica"]]
        now = self.shared.clock()
        if action.op in ("outage", "errors", "stall", "pause", "cut"):
            self.faults.troubles.append((now, now + duration_s))
        if action.op == "outage":
            self.faults.outages.append((now, now + duration_s))
        elif action.op == "errors":
            self.faults.error_rate = 0.3
            self.loop.call_later(duration_s, setattr, self.faults, "error_rate", 0.0)
        elif action.op == "stall":
            self.loop.slowness_s = duration_s / 10
            self.loop.call_later(duration_s, setattr, self.loop, "slowness_s", 0.0)
        elif action.op in ("empty", "evict"):
            self._lose(is_all=action.op == "empty")
        elif action.op == "cut":
            self.faults.cuts[replica.name] = now + duration_s
        elif action.op == "pause":
            self.loop.pause(replica.life, duration_s)
        elif action.op == "graph_errors":
            replica.graph_error_rate = 0.2
            self.loop.call_later(duration_s, setattr, replica, "graph_error_rate", 0.0)
        elif action.op in ("kill", "drain") and replica.is_up:
            if action.op == "kill":
                replica.kill()
            else:
                await replica.drain(duration_s)
            await asyncio.sleep(duration_s)
            await replica.start()

    def _lose(self, *, is_all: bool) -> None:
        """Makes the store lose all records, or some. If a replica's lease had run out, two replicas may then have the
        same session, and the first one that stores it keeps it."""
        is_one_unsure = any(replica.is_up and replica.may_lose_sessions for replica in self.replicas)
        lost = self.shared.lose(self.faults.rng, is_all=is_all)
        self.journal.note(f"the store has lost {', '.join(map(repr, lost))}")
        is_spilled = any(name.startswith("~") for name in lost)  # it is not known of which session
        for view in [view for client in self.clients for view in client.views]:
            if view.name in lost or is_spilled or not view.name:  # the client may not know its id yet
                view.forgotten()
                view.is_exclusive = view.is_exclusive and not is_one_unsure

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        lives = [replica.life for replica in self.replicas]
        task = context.get("task") or context.get("future")
        if any(life.is_over and task in life.tasks for life in lives):
            return
        error = context.get("exception")
        self.journal.violate(
            f"the event loop hears of an error that nobody has caught: {context['message']}: {error!r}"
        )


def simulate(
    act: Callable[[World], Awaitable[None]], *, seed: str, knobs: Knobs | None = None, does_finish: bool = True
) -> Journal:
    """Runs `act` in a new world, and then checks that nothing is left. Returns the journal."""
    rng = random.Random(f"{seed}/loop")
    loop = SimulatedLoop(delays(rng, _STORE_S))
    asyncio.set_event_loop(loop)
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would report its findings at another moment in each run
    world = World(loop, knobs or Knobs(), seed)

    async def run() -> None:
        await world.start()
        await act(world)
        if does_finish and not world.journal.violations:
            await world.finish()

    try:
        with deterministic(loop, random.Random(f"{seed}/ids"), world.knobs.models), warnings.catch_warnings():
            # A killed replica starts no coroutines any more; on a running replica the error itself is reported.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                loop.run_until_complete(run())
            except Stalled as error:
                world.journal.violate(f"the simulation stands still: {error}")
            finally:
                violations = list(world.journal.violations)
                with suppress(Stalled):
                    loop.run_until_complete(world.stop())
                world.journal.violations[:] = violations
    finally:
        loop.close()
        asyncio.set_event_loop(None)
        if was_enabled:
            gc.enable()
    return world.journal

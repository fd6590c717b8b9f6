"""The system under simulation, composed of the service's own parts as `service.server` composes them.

Only this file and `adapters.py` know how the service is composed and what its parts are called. To the rest of the
simulation, this file offers replicas that serve calls, and shows their contents as plain numbers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from carousel.v1 import error_pb2
from service.api.caller import CALLER, Caller, Domain, Principal
from service.api.inference import Inference
from service.api.models import Models
from service.api.sessions import Sessions
from service.api.status import to_message
from service.engine.engine import Engine
from service.engine.limits import EngineLimits
from service.errors import CarouselError
from service.hosting import Hosting
from service.repository.bundle import Bundle
from service.repository.runtime import Runtimes
from service.sessions.lifecycle import State
from service.sessions.limits import PolicyLimits, SessionLimits
from service.sessions.service import SessionService
from service.sessions.storage import Storage
from simulation.adapters import CODEC, EPOCH, LoopEngine, Observer
from simulation.bundles import make_bundle
from simulation.knobs import Counts, Knobs, Statistics, Tenant
from simulation.loop import Life
from simulation.store import Faults, SharedRecords, SimulatedStore

T = TypeVar("T")
_SPILLED = (State.SPILLING, State.SPILLED, State.RESTORING)


class Replica:
    """One replica. It can be started, killed and started again; each start begins a new `Life`.

    rng: draws the failures of its engines; on_bug: called when a server does what it must never do, such as a handler
    that raises an unexpected error.
    """

    def __init__(
        self,
        name: str,
        shared: SharedRecords,
        faults: Faults,
        knobs: Knobs,
        *,
        rng: random.Random,
        on_bug: Callable[[str], None],
    ) -> None:
        self.name = name
        self.knobs = knobs
        self.graph_error_rate = 0.0
        self.num_lives = 0
        self.is_up = False
        self.is_draining = False
        self.life = Life(name)
        self._shared = shared
        self._faults = faults
        self._rng = rng
        self._on_bug = on_bug

    @property
    def patience_s(self) -> float:
        """Seconds that it waits for another replica to hand a session over."""
        return self.knobs.lease_s + 2.0

    @property
    def may_lose_sessions(self) -> bool:
        """Whether its lease has run out in this life, so that another replica may have taken its sessions."""
        return self.life.name in self._shared.lapsed or not self._shared.is_there(self.life.name)

    async def start(self) -> None:
        """Starts the replica as `Server.start` does."""
        self.num_lives += 1
        self.is_draining = False
        self.life = Life(f"{self.name}.{self.num_lives}")
        await self.life.start(self._start(self.life))

    def kill(self) -> None:
        """Kills the replica without a shutdown. Its lease runs out later."""
        self.is_up = False
        self.life.end()

    async def drain(self, grace_s: float) -> None:
        """Drains and stops the replica as `Server.stop` does."""
        self.is_draining = True
        await self.life.start(self._drain(grace_s))
        self.is_up = False
        self.life.end()

    def stream(self, connection: Any, caller: Tenant | None = None) -> asyncio.Task[error_pb2.Error | None]:
        """Serves one `Inference.Stream` call. The task returns the call's error; None for OK."""
        serve = partial(self._guarded, self.life, "Stream", partial(self._inference.Stream, None, connection))
        return self.life.start(_called_by(caller, serve))

    def watch(self, request: Any, connection: Any) -> asyncio.Task[error_pb2.Error | None]:
        """Serves one `Inference.Watch` call. The task returns the call's error; None for OK."""
        serve = partial(self._guarded, self.life, "Watch", partial(self._inference.Watch, request, connection))
        return self.life.start(serve())

    def call(self, method: str, request: Any, caller: Tenant | None = None) -> asyncio.Task[Any]:
        """Serves one call, such as `Sessions.Get`. The task returns the response, or a `carousel.v1.Error`."""
        service_name, _, name = method.partition(".")
        servicers = {"Inference": self._inference, "Sessions": self._sessions, "Models": self._models}
        servicer = servicers[service_name]
        serve = partial(self._guarded, self.life, method, partial(getattr(servicer, name), request, None))
        return self.life.start(_called_by(caller, serve))

    def has(self, session_id: str) -> bool:
        """Whether a session is in this replica's memory."""
        return self._service.directory.get(session_id) is not None

    def store_trouble_s(self, since_s: float) -> float:
        """Returns for how many seconds since a virtual time the store did not work properly."""
        return self._faults.trouble_s(EPOCH + since_s)

    @property
    def lag_s(self) -> float:
        """Seconds that the session that waits longest has waited to be stored."""
        return self._service.checkpoints.lag_s

    def is_recording(self, session_id: str) -> bool:
        """Whether a session of this replica has ended and the store does not have this record yet."""
        return self.is_up and self._service.directory.is_ending(session_id)

    def counts(self) -> Counts:
        """Returns the counts that have bounds. They are checked after every event."""
        return Counts(
            num_sessions=len(self._service.directory),
            num_tombstones=len(self._service.registry.tombstones),
            fewest_unanswered=min((stream.replies.num_unanswered for stream in self._inference.streams), default=0),
            gauges=self._observer.gauges,
        )

    def statistics(self) -> Statistics:
        """Returns the replica's current contents."""
        service = self._service
        live = list(service.directory)
        seen = [engine.statistics for engine in self._engines if not engine.is_stopped]
        served = {id(engine) for engine in self._hosting.engines}
        waiters = sum(len(session.persistence.awaiting) + len(session.deferred or ()) for session in live)
        return Statistics(
            {
                session.id: (session.position, session.persistence.is_attached, session.state in _SPILLED)
                for session in live
            },
            slots_used=sum(one.slots_used for one in seen),
            forks_used=sum(one.forks_used for one in seen),
            jobs_waiting=sum(one.num_unanswered for one in seen),
            unanswered=[stream.replies.num_unanswered for stream in self._inference.streams],
            waiters=waiters + len(service.resume.claiming) + service.opening.num_waiting,
            engines_leaked=sum(not engine.is_stopped and id(engine) not in served for engine in self._engines),
            tasks=sorted(
                getattr(task.get_coro(), "__qualname__", "?") for task in self.life.tasks if task not in self._own_tasks
            ),
            gauges={
                **self._observer.gauges,
                "deferred_bytes": service.deferral.num_bytes,
                "watched_sessions": len(service.watches.of_session),
                "watched_bytes": service.watches.num_bytes,
                "unwritten_bytes": service.answer_budget.num_bytes,
                "unlisted_sessions": len(live) - len(service.directory.unused_since(float("inf"))),
            },
        )

    async def _start(self, life: Life) -> None:
        loop, knobs = asyncio.get_running_loop(), self.knobs
        self._observer = Observer()
        observer = cast(Any, self._observer)
        self.store = store = SimulatedStore(self._shared, life.name, self._faults, life)
        storage = self._storage = Storage(store, CODEC, observer, heartbeat_s=knobs.lease_s / 3.5, clock=loop.time)
        self._engines: list[LoopEngine] = []

        def make_engine(bundle: Bundle, variant: str) -> Engine:
            limits = EngineLimits(
                num_slots=knobs.num_slots,
                num_forks=knobs.num_forks,
                max_waiting=knobs.max_waiting,
                max_batch_rows=knobs.max_batch_rows,
                max_batch_tokens=16,
                max_chunk_tokens=knobs.max_chunk_tokens,
                inline_s=knobs.inline_s,
            )
            engine = LoopEngine(bundle, limits, observer, loop, self._crashed, variant=variant)
            engine.rng = self._rng
            self._engines.append(engine)
            return engine

        self._hosting = hosting = Hosting(
            Path("simulated"),
            Runtimes(),
            observer,
            make_engine=make_engine,
            num_sessions=self._num_sessions,
        )
        self._service = service = SessionService(
            storage,
            SessionLimits(
                max_sessions=knobs.max_sessions,
                idle_timeout_s=knobs.idle_timeout_s,
                max_age_s=knobs.max_age_s,
                max_feed_tokens=32,
                max_generate_tokens=64,
                max_in_flight=knobs.max_in_flight,
                max_forks=knobs.num_forks,
                generation_window=knobs.generation_window,
                max_answer_bytes=4096,
                num_tombstones=knobs.num_tombstones,
                replay_tokens=knobs.replay_tokens,
                max_marks=knobs.max_marks,
                hold_s=knobs.hold_s,
            ),
            observer,
            find=hosting.find,
            interval_s=knobs.checkpoint_interval_s,
            num_tokens=knobs.checkpoint_tokens,
            patience_s=self.patience_s,
            clock=loop.time,
            wall_clock=lambda: EPOCH + loop.time(),
        )
        service.start()
        self._graph_fails: Callable[[], bool] = lambda: False
        for model in knobs.models:
            await hosting.serve(self._bundle(model))
        self._graph_fails = self._draw_graph_failure
        limits = PolicyLimits(hold_s=knobs.hold_s, max_hold_s=2 * knobs.hold_s, keep_s=knobs.keep_s, max_keep_s=100.0)
        domain = Domain(hosting, service, limits)
        self._inference = Inference(domain, observer, lambda context: cast(Any, context).reset())
        self._sessions = Sessions(service)
        self._models = Models(hosting, max_answer_bytes=service.limits.max_answer_bytes)
        life.start(self._guarded(life, "the expiry loop", self._expire_for_ever))
        await asyncio.sleep(0)
        self._own_tasks = {*life.tasks} - {asyncio.current_task()}
        self.is_up = True

    def _num_sessions(self, engine: Engine) -> int:
        return self._service.num_sessions(engine)

    async def _drain(self, grace_s: float) -> None:
        loop, service = asyncio.get_running_loop(), self._service
        service.registry.is_draining = True
        deadline = loop.time() + grace_s
        self._inference.go_away(grace_s)
        while service.directory.num_generating and loop.time() < deadline:  # noqa: ASYNC110  # as `Server` does
            await asyncio.sleep(0.02)
        service.handover.end_all()
        self._inference.end_streams()
        await asyncio.sleep(1.0)
        await service.stop(5.0)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.knobs.idle_timeout_s / 4))
            self._service.expiry.expire()
            self._check_ages()
            await self._hosting.reap()

    def _check_ages(self) -> None:
        """Checks that no session is older than its limit after the expiry has run."""
        now_s, limit_s = self._service.registry.wall_clock(), self.knobs.max_age_s
        age_s = max((now_s - session.opened_at for session in self._service.directory), default=0.0)
        if limit_s and age_s >= limit_s:
            self._on_bug(f"{self.life.name} has a session of {age_s:g} s, and its limit is {limit_s:g} s")

    async def _guarded(self, life: Life, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Turns refusals into errors like the interceptor of calls, and reports any other exception as a bug."""
        try:
            return await work()
        except CarouselError as error:
            return to_message(error)
        except Exception as error:
            if not life.is_over:
                self._on_bug(f"{name} raised {error!r}{_causes(error)}")
            return error_pb2.Error(reason="INTERNAL", message=repr(error))

    def _crashed(self, error: BaseException) -> None:
        if not self.life.is_over:
            self._on_bug(f"an engine crashed: {error!r}")

    def _bundle(self, model: str) -> Bundle:
        return make_bundle(model, 1, self._fails)

    def _fails(self) -> bool:
        """Whether a run of a graph must raise. Never while engines warm up."""
        return self._graph_fails()

    def _draw_graph_failure(self) -> bool:
        return self.graph_error_rate > 0.0 and self._rng.random() < self.graph_error_rate


async def _called_by(caller: Tenant | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Serves a call with a caller's identity. work: makes its coroutine only when awaited, because the life may be over
    before."""
    if caller is not None:
        CALLER.set(Caller(Principal(caller.name, max_sessions=caller.max_sessions), asyncio.get_running_loop().time))
    return await work()


def _causes(error: BaseException) -> str:
    inner = getattr(error, "exceptions", ())
    return "".join(f" ({one!r})" for one in inner)

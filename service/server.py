"""The composition root: makes the parts, and starts, drains and stops them. Only this module knows all parts."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc

from carousel.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from service.api.caller import Domain
from service.api.inference import Inference
from service.api.interceptors import CallInterceptor
from service.api.models import Models
from service.api.reflection import add_reflection
from service.api.sessions import Sessions
from service.background import Background
from service.certificates import CLIENT_CA, SERVER, warn_of_dates
from service.check import attempt
from service.collector import Collector
from service.conditions import demand
from service.engine.engine import Engine
from service.health import HealthServicer, ModelHealth
from service.hosting import Hosting
from service.listeners import Reserved, make_tracing, principals
from service.process import StartError
from service.repository.bundle import Bundle
from service.repository.repository import RepositoryError
from service.sessions.service import SessionService
from service.sessions.storage import Storage
from service.settings import Settings
from service.storing import open_storage
from service.telemetry.access_log import AccessLog
from service.telemetry.engines import EngineTelemetry, ModelTelemetry, Occupancy
from service.telemetry.exposition import Exposition
from service.telemetry.metrics import Metrics
from service.telemetry.observers import SessionTelemetry, StoreTelemetry
from service.wire.base import Wire

log = structlog.get_logger()

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    sessions_pb2.DESCRIPTOR.services_by_name["Sessions"].full_name,
    models_pb2.DESCRIPTOR.services_by_name["Models"].full_name,
)
_COLLECT_S = 0.5
"""Seconds between two checks whether a garbage collection is due."""
_STREAM_END_S = 1.0
"""Seconds for streams to receive their last responses after every session is closed."""
_STORE_END_S = 5.0
"""Seconds for the store to write what is still pending."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The ports on which a started server listens, as bound, also where the setting is 0. 0: no such listener."""

    port: int
    metrics_port: int
    health_port: int


class Server:
    """One server. Call `run`, or `start`, then `wait`, then `stop`. Use it on one event loop only."""

    def __init__(self, settings: Settings, wire: Wire) -> None:
        self._settings = settings
        self._wire = wire
        self._is_open = self._is_started = False
        self._metrics = Metrics()
        self._tracing = make_tracing(settings)
        self._telemetry = SessionTelemetry(self._metrics, self._tracing, AccessLog(settings.access_log))
        self._health = HealthServicer()
        self._hosting = Hosting(
            settings.model_folder,
            settings.runtimes,
            ModelTelemetry(self._metrics, self._telemetry, self._models_changed),
            make_engine=self._make_engine,
            num_sessions=self._num_sessions,
            attempt=partial(attempt, settings),
        )
        self._model_health = ModelHealth(self._health, self._hosting.repository)
        self._sessions: SessionService | None = None
        self._storage: Storage | None = None
        self._inference: Inference | None = None
        self._reserved: Reserved | None = None
        self._probes: grpc.aio.Server | None = None
        self._exposition: Exposition | None = None
        self._background = Background()
        self._collector: Collector | None = None
        self._principals = principals(settings)
        self._leave = asyncio.Event()
        self._crash: BaseException | None = None

    async def run(self) -> None:
        """Starts, serves until a signal arrives, and stops. A signal during the start cancels the start.

        Raises StartError, and the error that crashed an engine, if one did.
        """
        starting = asyncio.create_task(self.start())
        leaving = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait((starting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
            else:
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
            if not self._leave.is_set():
                self._collector = Collector(self._hosting.num_batches)
                self._collector.take_over()
                self._background.repeat("collect", _COLLECT_S, self._collector.collect_if_due)
            await self.wait()
        finally:
            leaving.cancel()
            await self.stop()

    async def start(self) -> Addresses:
        """Starts everything and returns the addresses. Handles signals from here on.

        In this order: reserves the ports, checks all conditions of a start, opens the store, loads the repository,
        warms up the engines, and listens. Raises StartError. Before the store is opened, nothing is created."""
        settings = self._settings
        self._wire.handle_signals(self._leave.set, self._on_reload)
        log.info("server.starting")
        warn_of_dates(settings)
        self._wire.reserve()
        reserved = self._reserved = Reserved(settings)
        await asyncio.to_thread(demand, settings)
        self._storage = await open_storage(settings, StoreTelemetry(self._metrics))
        self._open_sessions(self._storage)
        try:
            await self._hosting.start()
        except RepositoryError as error:
            raise StartError(str(error)) from error
        self._open_wire()
        self._watch_certificates()
        await self._model_health.start(SERVICES)
        self._exposition = reserved.make_exposition(self._metrics.registry)
        probes, health_port = reserved.make_probes(self._health) or (None, 0)
        port = await self._wire.start()
        self._probes = probes
        if probes is not None:
            await probes.start()
        interval_s = min(1.0, settings.idle_timeout_s / 4)
        self._background.repeat("expire", interval_s, self._expire)
        self._background.repeat("reap", interval_s, self._hosting.reap)
        self._background.repeat("health", min(0.5, settings.lease_s / 3), self._look_at_lease)
        if settings.watch_models_s:
            self._background.repeat("watch", settings.watch_models_s, self._hosting.look)
        self._is_started = True
        addresses = Addresses(port, 0 if self._exposition is None else self._exposition.port, health_port)
        models = (
            ", ".join(f"{model}/{version}" for model, version in sorted(self._hosting.repository.bundles)) or "none"
        )
        log.info(
            "server.started",
            models=models,
            wire=self._wire.name,
            host=settings.host,
            port=port,
            metrics_port=addresses.metrics_port,
            health_port=health_port,
        )
        return addresses

    async def wait(self) -> None:
        """Returns when SIGTERM or SIGINT arrives. Raises the error that crashed an engine, if one did."""
        await self._leave.wait()
        if self._crash is not None:
            raise self._crash

    async def stop(self) -> None:
        """Drains the server and stops it: refuses new sessions, sends `GoAway` to every stream, lets generations and
        feeds finish within the grace time, and stores sessions. After a failed start it only releases resources."""
        if self._sessions is not None and self._is_started:
            await self._drain(self._sessions)
        await self._background.stop()
        if self._inference is not None:
            self._inference.end_streams()
        await self._wire.stop(_STREAM_END_S)
        if self._probes is not None:
            await self._probes.stop(0)
        if self._reserved is not None:
            self._reserved.release()
        if self._sessions is not None:
            await self._sessions.stop(_STORE_END_S)
        if self._crash is None:
            await self._hosting.stop()
        if self._exposition is not None:
            await self._exposition.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        if self._is_started or self._leave.is_set():
            log.info("server.stopped")

    async def _drain(self, sessions: SessionService) -> None:
        loop = asyncio.get_running_loop()
        grace_s = self._settings.shutdown_grace_s
        log.info("server.draining", sessions=len(sessions.directory), grace_s=grace_s)
        sessions.registry.is_draining = True
        await self._health.enter_graceful_shutdown()
        deadline = loop.time() + grace_s
        if self._inference is not None:
            self._inference.go_away(grace_s)
        # Polls for at most the grace time: this happens once in a server's life, so the hot path signals nothing.
        while sessions.directory.num_generating and loop.time() < deadline and self._crash is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        busy = sessions.handover.busy()  # a session cannot be stored in the middle of a long feed
        while busy() and loop.time() < deadline and self._crash is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        sessions.handover.end_all()

    def _open_sessions(self, storage: Storage) -> None:
        settings = self._settings
        self._sessions = SessionService(
            storage,
            settings.session_limits,
            self._telemetry,
            find=self._hosting.find,
            interval_s=settings.checkpoint_interval_s,
            num_tokens=settings.checkpoint_tokens,
            patience_s=settings.lease_s + 2.0,
        )
        self._sessions.start()
        checkpoints = self._sessions.checkpoints
        self._metrics.checkpoint_lag.labels().add_function(lambda: checkpoints.lag_s)

    def _watch_certificates(self) -> None:
        certificates = self._wire.certificates
        if certificates is None:
            return
        for setting in (SERVER, CLIENT_CA):
            if certificates.end_of(setting) is not None:
                self._metrics.certificate_expiry.labels(setting).add_function(partial(certificates.end_of, setting))

    def _make_engine(self, bundle: Bundle, variant: str) -> Engine:
        is_tracing = self._tracing is not None
        telemetry = EngineTelemetry(self._metrics, bundle.model, bundle.version, variant, is_tracing=is_tracing)
        loop = asyncio.get_running_loop()
        limits = self._settings.engine_limits
        engine = Engine(bundle, limits, telemetry, loop, self._on_crash, variant=variant)
        there = weakref.ref(engine)

        def occupancy() -> Occupancy | None:
            engine = there()  # None after its version was unloaded
            seen = None if engine is None else engine.statistics
            if seen is None or seen.is_stopped:
                return None
            return Occupancy(seen.slots_used, seen.forks_used, seen.num_unanswered)

        telemetry.watch(occupancy, num_slots=limits.num_slots, state_bytes=engine.session_bytes)
        return engine

    def _num_sessions(self, engine: Engine) -> int:
        return 0 if self._sessions is None else self._sessions.num_sessions(engine)

    def _open_wire(self) -> None:
        settings, sessions = self._settings, self._sessions
        assert sessions is not None  # noqa: S101  # `_open_sessions` ran before
        interceptor = CallInterceptor(
            self._telemetry,
            self._principals.find,
            max_answer_bytes=sessions.limits.max_answer_bytes,
            max_calls=settings.max_calls,
        )
        server = self._wire.open(interceptor)
        domain = Domain(self._hosting, sessions, settings.policy_limits)
        models = Models(self._hosting, max_answer_bytes=sessions.limits.max_answer_bytes)
        self._inference = Inference(domain, self._telemetry, self._wire.reset)
        inference_pb2_grpc.add_InferenceServicer_to_server(self._inference, server)
        sessions_pb2_grpc.add_SessionsServicer_to_server(Sessions(sessions), server)
        models_pb2_grpc.add_ModelsServicer_to_server(models, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            add_reflection((*SERVICES, health.SERVICE_NAME), server)
        self._is_open = True

    def _models_changed(self) -> None:
        if self._collector is not None:
            self._collector.request()  # the graphs of an unloaded version are large garbage
        if self._is_open:
            self._background.start("health", self._model_health.update())

    async def _expire(self) -> None:
        if self._sessions is not None:
            self._sessions.expiry.expire()

    async def _look_at_lease(self) -> None:
        if self._sessions is not None:
            await self._model_health.set_cut(self._sessions.leases.is_cut)

    def _on_reload(self) -> None:
        if self._leave.is_set() or not self._is_started:
            doing = "shutting down" if self._leave.is_set() else "starting"
            log.info("server.not_reloaded", reason=f"the server is {doing}")
        else:
            self._background.start("reload", self._reload())

    async def _reload(self) -> None:
        """Reads tokens and certificates again, and loads new versions of models. An invalid file is logged, and its
        earlier content stays in use."""
        log.info("server.reloading")
        if self._principals.reload() and self._settings.tokens_file is not None:
            log.info("tokens.reloaded")
        await asyncio.to_thread(self._wire.reload)
        await self._hosting.look(is_asked=True)
        log.info("server.reloaded")

    def _on_crash(self, error: BaseException) -> None:
        log.error("engine.crashed", exc_info=error)
        self._crash = error
        self._leave.set()

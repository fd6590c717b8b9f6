"""The composition root: makes the parts, starts, drains and stops them. The only room that knows them all."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from carousel.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from service.api.catalog import Catalog
from service.api.domain import Domain
from service.api.inference import Inference
from service.api.interceptors import CallInterceptor
from service.api.models import Models
from service.api.sessions import Sessions
from service.engine.engine import Engine
from service.repository.repository import Repository, RepositoryError, scan
from service.sessions.dispatcher import Dispatcher
from service.sessions.frames import Frames
from service.sessions.live import LiveSessions
from service.sessions.registry import Registry
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.observers import EngineTelemetry, SessionTelemetry

log = structlog.get_logger()

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    sessions_pb2.DESCRIPTOR.services_by_name["Sessions"].full_name,
    models_pb2.DESCRIPTOR.services_by_name["Models"].full_name,
)
_STREAM_END_S = 1.0
"""Seconds that streams get to take in their last responses, once every session is closed."""


class StartError(Exception):
    """The server cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a started server listens. Ports are the real ones, also where 0 was asked for."""

    port: int
    metrics_port: int


class Server:
    """One server: `start`, then `wait`, then `stop`. All of it on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._telemetry = SessionTelemetry(self._metrics)
        live = LiveSessions()
        self._registry = Registry(live, settings.session_limits, self._telemetry)
        self._dispatcher = Dispatcher(live, settings.session_limits, self._telemetry)
        self._frames = Frames(live, settings.session_limits, self._telemetry)
        self._health = health.aio.HealthServicer()
        self._engines: dict[tuple[str, int, str], Engine] = {}
        self._inference: Inference | None = None
        self._grpc: grpc.aio.Server | None = None
        self._http: tuple[WSGIServer, Thread] | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._crash: BaseException | None = None

    async def start(self) -> Addresses:
        """Loads the repository, warms the engines up, and listens. Raises StartError."""
        settings = self._settings
        try:
            repository = await asyncio.to_thread(scan, settings.models, settings.runtimes)
        except RepositoryError as error:
            raise StartError(str(error)) from error
        await self._start_engines(repository)
        self._grpc = self._make_grpc(repository)
        try:
            port = self._grpc.add_insecure_port(f"{settings.host}:{settings.port}")
        except RuntimeError as error:
            raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
        try:
            self._http = start_http_server(settings.metrics_port, settings.host, self._metrics.registry)
        except OSError as error:
            raise StartError(f"cannot listen on {settings.host}:{settings.metrics_port}: {error}") from error
        await self._grpc.start()
        await self._set_health(repository)
        self._expiry = asyncio.create_task(self._expire_for_ever())
        addresses = Addresses(port, self._http[0].server_port)
        models = ", ".join(f"{model}/{version}" for model, version in sorted(repository.bundles)) or "none"
        log.info("server.started", models=models, host=settings.host, port=port, metrics_port=addresses.metrics_port)
        return addresses

    async def wait(self) -> None:
        """Returns when SIGTERM or SIGINT comes. Raises what crashed an engine, if one did."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave.set)
        await self._leave.wait()
        if self._crash is not None:
            raise self._crash

    async def stop(self) -> None:
        """Refuses what is new, lets generations finish within the grace time, tells every stream, and stops."""
        loop = asyncio.get_running_loop()
        log.info("server.draining", sessions=len(self._registry), grace_s=self._settings.shutdown_grace_s)
        self._registry.is_draining = True
        await self._health.enter_graceful_shutdown()
        deadline = loop.time() + self._settings.shutdown_grace_s
        # bounded by the grace time; nothing on the hot path is made to signal what is asked once in a server's life
        while self._registry.num_generating and loop.time() < deadline and self._crash is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if self._expiry is not None:
            self._expiry.cancel()
        self._registry.close_all()
        if self._inference is not None:
            self._inference.end_streams()
        if self._grpc is not None:
            await self._grpc.stop(_STREAM_END_S)
        if self._crash is None:
            for engine in self._engines.values():
                await asyncio.to_thread(engine.stop)
        if self._http is not None:
            server, thread = self._http
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join()
        log.info("server.stopped")

    async def _start_engines(self, repository: Repository) -> None:
        loop = asyncio.get_running_loop()
        for problem in repository.problems.values():
            self._metrics.models_served.labels(problem.model, str(problem.version)).set(0)
            log.error("model.failed", model=problem.model, version=problem.version, reason=problem.reason)
        for key, bundle in repository.bundles.items():
            for variant in bundle.variants:
                telemetry = EngineTelemetry(self._metrics, *key, variant)
                limits = self._settings.engine_limits
                engine = Engine(bundle, limits, telemetry, loop, self._on_crash, variant=variant)
                await asyncio.to_thread(engine.start)
                self._engines[*key, variant] = engine
            self._metrics.models_served.labels(bundle.model, str(bundle.version)).set(1)
            log.info("model.loaded", model=bundle.model, version=bundle.version, variants=list(bundle.variants))

    def _make_grpc(self, repository: Repository) -> grpc.aio.Server:
        settings = self._settings
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes + 1024 * 1024),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server behind it
            # Clients may ping as often as they like, also between calls; by default a third ping within 5 minutes ends
            # the connection. A flood of pings is bounded by the transport itself.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # The server pings too, so that a client that is gone without a word is noticed.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        server = grpc.aio.server(interceptors=(CallInterceptor(self._telemetry),), options=options)
        catalog = Catalog(repository, self._engines)
        domain = Domain(catalog, self._registry, self._dispatcher, self._frames)
        self._inference = Inference(domain, self._telemetry)
        inference_pb2_grpc.add_InferenceServicer_to_server(self._inference, server)
        sessions_pb2_grpc.add_SessionsServicer_to_server(Sessions(self._registry), server)
        models_pb2_grpc.add_ModelsServicer_to_server(Models(repository), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def _set_health(self, repository: Repository) -> None:
        """The whole server, each service, and each model as `model/version`; a model's name stands for its newest."""
        serving = health_pb2.HealthCheckResponse.SERVING
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, serving)
        for model, version in sorted(repository.problems):
            await self._health.set(model, not_serving)
            await self._health.set(f"{model}/{version}", not_serving)
        for model, version in sorted(repository.bundles):
            await self._health.set(model, serving)
            await self._health.set(f"{model}/{version}", serving)

    async def _expire_for_ever(self) -> None:
        interval_s = min(1.0, self._settings.idle_timeout_s / 4)
        while True:
            await asyncio.sleep(interval_s)
            self._registry.expire()

    def _on_crash(self, error: BaseException) -> None:
        log.error("engine.crashed", exc_info=error)
        self._crash = error
        self._leave.set()

"""OpenTelemetry traces, sent by OTLP. Needs the extra `tracing`; imported only if traces are configured.

the call                      server span; its parent is the caller's span, from W3C `traceparent`
└── feed, generate, ...       from reading a request to its answer; on a stream there are many
    ├── queue                 until its first batch
    └── batch                 each batch that has a part of it: assembling it, running it, storing its results
        └── run               the run of the graph alone
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from carousel._version import __version__
from service.observer import BatchReport, CallReport

_MAX_BATCHES = 64
"""The most batches of one request that have spans of their own; a generation may have thousands."""
_SERVERS_FAULT = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that make a server's span an error, by OpenTelemetry's conventions for gRPC."""


class Tracing:
    """Makes spans and exports them. endpoint: of a collector, `http://host:4317`, or `https` for TLS. ratio: 0 to 1,
    the share of sampled calls among those that come without a trace; a call that comes with a trace says itself whether
    it is sampled."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "carousel", SERVICE_VERSION: __version__}),
            sampler=ParentBased(TraceIdRatioBased(ratio)),
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("carousel")
        self._propagator = TraceContextTextMapPropagator()

    def call(self, report: CallReport, metadata: Mapping[str, str]) -> CallTrace | None:
        """Starts the trace of a call. Returns None if the call is not sampled."""
        service, _, method = report.method.lstrip("/").rpartition("/")
        span = self._tracer.start_span(
            f"{service}/{method}" if report.is_known else "unknown method",  # span names must come from a fixed list
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "carousel.request_id": report.request_id,
            },
        )
        return CallTrace(self._tracer, span) if span.is_recording() else None

    def stop(self) -> None:
        """Sends the spans that are left. Blocks; for seconds if no collector accepts them."""
        self._provider.shutdown()


class CallTrace:
    """Implements `observer.CallTrace`."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    def request(self) -> RequestTrace:
        """See `observer.CallTrace`."""
        return RequestTrace(self._tracer, self._span)

    def ended(self, report: CallReport) -> None:
        """See `observer.CallTrace`."""
        self._span.set_attribute("rpc.grpc.status", report.code)
        for name, value in (("enduser.id", report.principal), ("carousel.reason", report.reason)):
            if value:
                self._span.set_attribute(name, value)
        if report.code in _SERVERS_FAULT:
            self._span.set_status(Status(StatusCode.ERROR, report.code))
        self._span.end()


class RequestTrace:
    """Implements `observer.RequestTrace`. Its span gets its name when it ends; a refused request has no span."""

    def __init__(self, tracer: Tracer, parent: Span) -> None:
        self._tracer = tracer
        self._began_ns = time.time_ns()
        self._span = tracer.start_span("request", set_span_in_context(parent), start_time=self._began_ns)
        self._context = set_span_in_context(self._span)
        self._num_batches = 0
        self.trace_id = format_trace_id(self._span.get_span_context().trace_id)

    def batch_ran(self, report: BatchReport) -> None:
        """See `observer.RequestTrace`."""
        self._num_batches += 1
        if self._num_batches > _MAX_BATCHES:
            return
        now_ns = time.time_ns()
        committing_ns = now_ns - round(report.commit_s * 1e9)
        running_ns = committing_ns - round(report.run_s * 1e9)
        began_ns = running_ns - round(report.gather_s * 1e9)
        if self._num_batches == 1:
            queue = self._tracer.start_span("queue", self._context, start_time=self._began_ns)
            queue.end(max(self._began_ns, began_ns))
        attributes = {"carousel.graph": report.kind, "carousel.sessions": report.num_rows}
        batch = self._tracer.start_span("batch", self._context, attributes=attributes, start_time=began_ns)
        run = self._tracer.start_span("run", set_span_in_context(batch), start_time=running_ns)
        run.end(committing_ns)
        batch.end(now_ns)

    def ended(self, request: str, model: str, version: int, num_tokens: int) -> None:
        """See `observer.RequestTrace`."""
        self._span.update_name(request)
        self._span.set_attributes(
            {
                "carousel.model": model,
                "carousel.version": version,
                "carousel.tokens": num_tokens,
                "carousel.batches": self._num_batches,
            }
        )
        self._span.end()

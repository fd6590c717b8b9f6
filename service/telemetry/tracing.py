"""Traces by OpenTelemetry, sent by OTLP. Needs the extra `tracing`; imported only when traces are asked for.

the call                      server span; its parent is the caller's, by W3C `traceparent`
└── feed, generate, ...       from reading a request to its answer; on a stream there are many
    ├── queue                 until its first batch
    └── batch                 each that it has a part in: assembling it, running it, storing what came of it
        └── run               of the graph alone
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
"""Batches of one request that have spans of their own; a generation may have thousands."""
_SERVERS_FAULT = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes at which a server's span is an error, by OpenTelemetry's conventions for gRPC."""


class Tracing:
    """Where spans come from and go to. endpoint: of a collector, `http://host:4317`, or `https` for TLS. ratio: 0 to 1,
    of the calls that come without a trace; those that come with one say themselves whether they are sampled."""

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
        """The trace of a call that has come; None when it is not sampled."""
        service, _, method = report.method.lstrip("/").rpartition("/")
        span = self._tracer.start_span(
            f"{service}/{method}" if report.is_known else "unknown method",  # a name is of a fixed list
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
        """Sends what is left. Blocks, for seconds when nobody takes it."""
        self._provider.shutdown()


class CallTrace:
    """See `observer.CallTrace`."""

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
    """See `observer.RequestTrace`. Its span is named when it ends; one that is refused has none."""

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

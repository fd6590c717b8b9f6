"""An OTLP collector that keeps the spans that servers send."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans by OTLP on a free port and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        self._server.start()

    def Export(  # the name that gRPC calls
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            assert {"service.name": "carousel"}.items() <= {
                one.key: one.value.string_value for one in resource.resource.attributes
            }.items()
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def under(self, parent: Span) -> list[Span]:
        return sorted(
            (span for span in self.spans if span.parent_span_id == parent.span_id),
            key=lambda span: span.start_time_unix_nano,
        )


def attributes(span: Span) -> dict[str, object]:
    """Returns the attributes of a span by name."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}

"""Traces as a collector receives them: in the caller's context, with a span for each request and the times of its
phases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from carousel import Client
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from examples.local_service import LocalService
from tests.conftest import ROOT
from tests.services import local_service
from tests.spans import Collector, attributes

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def traced(collector: Collector, **flags: object) -> dict[str, object]:
    return {"otlp-endpoint": f"http://127.0.0.1:{collector.port}", **{k.replace("_", "-"): v for k, v in flags.items()}}


def generate(service: LocalService, flags: str) -> None:
    """Generates as a caller that has its own trace. flags: those of W3C's `traceparent`; 01 means sampled."""
    with grpc.insecure_channel(service.target) as channel:
        request = pb.GenerateRequest(model="g2p-en", source=pb.Sequence(text="gate"))
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),)
        assert list(inference_pb2_grpc.InferenceStub(channel).Generate(request, metadata=metadata))


def test_a_call_is_part_of_its_callers_trace_and_tells_where_its_time_went(
    collector: Collector, g2p_repository: Path
) -> None:
    with local_service(g2p_repository, traced(collector)) as service:
        generate(service, "01")
        service.stop()  # the server sends the remaining spans when it stops
    (call,) = collector.named("carousel.v1.Inference/Generate")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert attributes(call)["rpc.grpc.status"] == "OK"
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    requests = collector.under(call)
    assert [span.name for span in requests] == ["open", "generate"]
    found = attributes(requests[1])
    assert (found["carousel.model"], found["carousel.version"], found["carousel.tokens"]) == ("g2p-en", 1, 3)
    for request in requests:
        inside = collector.under(request)
        assert inside[0].name == "queue"
        assert {span.name for span in inside[1:]} == {"batch"}
        for batch in inside[1:]:
            (run,) = collector.under(batch)
            assert run.name == "run"
            assert batch.start_time_unix_nano <= run.start_time_unix_nano
            assert run.end_time_unix_nano <= batch.end_time_unix_nano
        assert call.start_time_unix_nano <= request.start_time_unix_nano
    graphs = [[attributes(batch)["carousel.graph"] for batch in collector.under(one)[1:]] for one in requests]
    assert graphs[0] == ["encoder"]
    assert set(map(str, graphs[1])) == {"step"}


def test_requests_of_a_stream_have_a_span_each_and_errors_a_status(collector: Collector, g2p_repository: Path) -> None:
    with local_service(g2p_repository, traced(collector)) as service:
        with Client(service.target) as client:
            with client.session("g2p-en", source="gate") as session:
                session.feed(["G"])
                session.feed(["EY", "T"])
                session.score([["K"]])
            with client.batch("g2p-en") as batch:
                batch.open_many(["gate", "gate"])
                batch.step([7, 7])
        service.stop()
    names = [span.name for span in collector.spans]
    assert names.count("feed") == 2
    assert names.count("score") == names.count("step_batch") == 1
    streams = collector.named("carousel.v1.Inference/Stream")
    assert len(streams) == 2
    by_stream = [sorted({span.name for span in collector.under(stream)}) for stream in streams]
    assert sorted(by_stream) == [["feed", "open", "score"], ["open", "step_batch"]]
    for name in ("feed", "score", "step_batch"):
        for request in collector.named(name):
            assert {"queue", "batch"} <= {span.name for span in collector.under(request)}, name


def test_traces_that_are_not_sampled_are_not_sent(collector: Collector, g2p_repository: Path) -> None:
    """The caller's flag decides. Without a caller's trace, the ratio decides."""
    with local_service(g2p_repository, traced(collector, trace_ratio=0)) as service:
        generate(service, "00")
        with Client(service.target) as client:
            list(client.generate("g2p-en", "gate"))
        generate(service, "01")
        service.stop()
    assert len(collector.named("carousel.v1.Inference/Generate")) == 1


def test_latencies_have_traces_as_exemplars(collector: Collector, g2p_repository: Path) -> None:
    """Only scrapers that ask for OpenMetrics get exemplars."""
    with local_service(g2p_repository, traced(collector)) as service:
        generate(service, "01")
        asked = urllib.request.Request(service.metrics_url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(asked, timeout=10) as response:
            lines = response.read().decode().splitlines()
        with urllib.request.urlopen(service.metrics_url, timeout=10) as response:
            assert TRACE not in response.read().decode()
    exemplars = [line for line in lines if TRACE in line]
    assert len(exemplars) == 1
    assert exemplars[0].startswith("carousel_request_latency_seconds_bucket{")
    assert 'request="generate"' in exemplars[0]


def test_a_missing_collector_delays_nothing(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"otlp-endpoint": "http://127.0.0.1:1"}) as service:
        with Client(service.target, timeout=5.0) as client:
            assert len(list(client.generate("tiny-endless", max_tokens=300))) == 300
        began_s = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began_s < 20


def test_without_the_tracing_library_the_start_says_what_to_install(tiny_repository: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "opentelemetry"  # found before the library, in every process
    hidden.mkdir()
    (hidden / "__init__.py").touch()
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [
        sys.executable,
        "-m",
        "service",
        "--otlp-endpoint",
        "http://127.0.0.1:1",
        "--models",
        str(tiny_repository),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert (
        f"otlp_endpoint needs opentelemetry.exporter, which is not installed: ./scripts/setup tracing (in {ROOT})"
        in done.stderr + done.stdout
    )


def test_the_tracing_library_is_imported_only_for_traces() -> None:
    code = (
        "import service.__main__, service.server, sys;"
        "print([n for n in sys.modules if n.startswith(('opentelemetry.exporter', 'service.telemetry.tracing'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"

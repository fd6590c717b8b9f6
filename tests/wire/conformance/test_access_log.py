"""Each call has a line in the access log, a request id and a span, also if it is refused before its handler runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from carousel import CarouselError, Client
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc
from examples.local_service import LocalService
from tests.services import local_service
from tests.spans import Collector, attributes
from tests.waiting import wait_until
from tests.wire.conformance.conftest import require

TOKEN = "of-the-app"
KEY = "x-request-id"
APP = ("authorization", f"Bearer {TOKEN}")


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def watched(
    request: pytest.FixtureRequest, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalService, Collector]]:
    """A service with principals that logs all calls, on each wire, and the collector of its spans."""
    require(request.param)
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(f'[principals.app]\ntoken_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]\n')
    collector = Collector()
    flags = {
        "wire": request.param,
        "tokens-file": tokens,
        "access-log": "all",
        "otlp-endpoint": f"http://127.0.0.1:{collector.port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        # milliseconds until a batch of spans is sent; the default is 5,000
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with local_service(tiny_repository, flags) as service:
            yield service, collector
    collector.stop()


def line(service: LocalService, request_id: str | bytes) -> dict[str, Any]:
    """Waits for a call's log line and returns it. There must be only one."""

    def found() -> list[dict[str, Any]]:
        return [one for one in service.log if one.get("request_id") == request_id]

    wait_until(lambda: bool(found()))
    (only,) = found()
    assert only["event"] == "call.ended"
    return only


def ids_in(error: Any) -> set[object]:
    """Returns the request ids that a failed call reports."""
    given: set[object] = {value for name, value in error.trailing_metadata() if name == KEY}
    status: Any = rpc_status.from_call(error)
    for detail in () if status is None else status.details:
        info = error_details_pb2.RequestInfo()
        if detail.Unpack(info):
            given.add(info.request_id)
    return given


def test_a_successful_calls_log_line_says_what_it_did(watched: tuple[LocalService, Collector]) -> None:
    service, collector = watched
    with grpc.insecure_channel(service.target) as channel:
        request = pb.GenerateRequest(model="tiny-endless", decoding=pb.Decoding(max_tokens=5))
        request.prompt.ids.ids.extend([2, 3])
        call: Any = inference_pb2_grpc.InferenceStub(channel).Generate(request, metadata=(APP, (KEY, "a-generation")))
        num_messages = len(list(call))
        assert (KEY, "a-generation") in call.trailing_metadata()
        _, listed = models_pb2_grpc.ModelsStub(channel).List.with_call(models_pb2.ModelsListRequest(), metadata=(APP,))
    found = line(service, "a-generation")
    assert {name: found[name] for name in ("principal", "method", "model", "code")} == {
        "principal": "app",
        "method": "/carousel.v1.Inference/Generate",
        "model": "tiny-endless",
        "code": "OK",
    }
    assert (found["messages_in"], found["messages_out"]) == (1, num_messages)
    assert (found["tokens_in"], found["tokens_out"]) == (2, 5)
    assert found["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < found["duration_s"] < 60
    (made,) = [value for name, value in listed.trailing_metadata() if name == KEY]
    assert line(service, made)["method"] == "/carousel.v1.Models/List"
    wait_until(lambda: bool(spans(collector, "a-generation")))
    (span,) = spans(collector, "a-generation")
    assert found["trace_id"] == span.trace_id.hex()
    assert attributes(span)["enduser.id"] == "app"


def spans(collector: Collector, request_id: str) -> list[Any]:
    return [span for span in collector.spans if attributes(span).get("carousel.request_id") == request_id]


def test_a_stream_has_one_line_with_its_counts(watched: tuple[LocalService, Collector]) -> None:
    service, _ = watched
    requests = [
        pb.StreamRequest(request_id=1, open=pb.Open(model="tiny-endless")),
        pb.StreamRequest(request_id=2, feed=pb.Feed(token_ids=[1, 2, 3])),
        pb.StreamRequest(request_id=3, feed=pb.Feed(token_ids=[4])),
        pb.StreamRequest(request_id=4, feed=pb.Feed(token_ids=[10**6])),
        pb.StreamRequest(request_id=5, generate=pb.Generate(decoding=pb.Decoding(max_tokens=7))),
    ]
    with grpc.insecure_channel(service.target) as channel:
        call: Any = inference_pb2_grpc.InferenceStub(channel).Stream(iter(requests), metadata=(APP, (KEY, "a-stream")))
        answers = list(call)
    found = line(service, "a-stream")
    assert found["code"] == "OK"
    assert (found["model"], found["requests_failed"]) == ("tiny-endless", 1)
    assert (found["messages_in"], found["messages_out"]) == (5, len(answers))
    assert (found["tokens_in"], found["tokens_out"]) == (4, 7)
    (refused,) = [answer.error for answer in answers if answer.WhichOneof("response") == "error"]
    assert refused.metadata[KEY] == "a-stream"


def test_every_error_of_a_step_batch_has_the_calls_id(watched: tuple[LocalService, Collector]) -> None:
    requests = [
        pb.StreamRequest(request_id=1, open=pb.Open(model="tiny-endless")),
        pb.StreamRequest(request_id=2, step_batch=pb.StepBatch(handles=[1, 10**6], token_ids=[1, 1])),
    ]
    with grpc.insecure_channel(watched[0].target) as channel:
        call: Any = inference_pb2_grpc.InferenceStub(channel).Stream(iter(requests), metadata=(APP, (KEY, "a-batch")))
        answers = list(call)
    assert [one.error.metadata[KEY] for one in answers[-1].batch_stepped.errors] == ["a-batch"]


@pytest.mark.parametrize("is_in_a_stream", [False, True])
def test_the_clients_error_has_the_id_of_its_calls_line(
    watched: tuple[LocalService, Collector], *, is_in_a_stream: bool
) -> None:
    service, _ = watched
    with Client(service.target, token=TOKEN) as client:
        session = client.session("tiny-endless")
        with pytest.raises(CarouselError) as caught:
            session.feed([10**6]) if is_in_a_stream else client.model("nope")
    error = caught.value
    method = "/carousel.v1.Inference/Stream" if is_in_a_stream else "/carousel.v1.Models/Get"
    assert line(service, error.request_id)["method"] == method
    assert KEY not in error.metadata


@pytest.mark.parametrize(
    ("path", "data", "metadata", "ended"),
    [
        ("/carousel.v1.Models/List", b"", (), (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")),
        ("/carousel.v1.Models/Load", b"", (APP,), (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")),
        ("/carousel.v1.Models/Get", b"\x0a\x04nope", (APP,), (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")),
        ("/carousel.v1.Models/Get", b"\xff", (APP,), (grpc.StatusCode.INTERNAL, None)),
        ("/carousel.v1.Models/Nope", b"", (APP,), (grpc.StatusCode.UNIMPLEMENTED, None)),
        ("/no.such.Service/At/All", b"", (), (grpc.StatusCode.UNIMPLEMENTED, None)),
    ],
)
def test_calls_that_are_refused_have_a_line_an_id_and_a_span(
    watched: tuple[LocalService, Collector],
    path: str,
    data: bytes,
    metadata: tuple[tuple[str, str], ...],
    ended: tuple[grpc.StatusCode, str | None],
) -> None:
    service, collector = watched
    code, reason = ended
    has_method = path.startswith("/carousel.v1.Models/") and "Nope" not in path
    request_id = f"refused-{code.name}-{path}"
    with grpc.insecure_channel(service.target) as channel:
        call: Any = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as raised:
            call(data, metadata=(*metadata, (KEY, request_id)), timeout=30)
    error: Any = raised.value
    assert error.code() is code
    assert ids_in(error) == {request_id}
    found = line(service, request_id)
    assert (found["method"], found["code"], found.get("reason")) == (path, code.name, reason)
    assert found["principal"] == ("app" if metadata and has_method else "")
    wait_until(lambda: bool(spans(collector, request_id)))
    (span,) = spans(collector, request_id)
    assert attributes(span)["rpc.grpc.status"] == code.name
    assert span.name == (
        path[1:] if path.startswith("/carousel.v1.Models/") and "Nope" not in path else "unknown method"
    )


@pytest.mark.parametrize("given", ["two words", "x" * 129, ""])
def test_an_invalid_request_id_is_replaced(watched: tuple[LocalService, Collector], given: str) -> None:
    service, _ = watched
    with grpc.insecure_channel(service.target) as channel:
        stub = models_pb2_grpc.ModelsStub(channel)
        _, call = stub.List.with_call(models_pb2.ModelsListRequest(), metadata=(APP, (KEY, given)))
    (made,) = [value for name, value in call.trailing_metadata() if name == KEY]
    assert made != given
    assert len(made) == 32
    assert line(service, made)["code"] == "OK"


def test_an_unknown_method_name_is_not_a_metric_label(watched: tuple[LocalService, Collector]) -> None:
    service, _ = watched
    with grpc.insecure_channel(service.target) as channel:
        call: Any = channel.unary_unary("/made.up.Service/Method")
        with pytest.raises(grpc.RpcError):
            call(b"", metadata=(APP,), timeout=30)
    with urlopen(service.metrics_url, timeout=10) as response:
        text = response.read().decode()
    assert "made.up" not in text
    assert 'carousel_calls_total{code="UNIMPLEMENTED",method="unknown"}' in text


@pytest.mark.parametrize(("level", "codes"), [("off", []), ("errors", ["NOT_FOUND"]), ("all", ["NOT_FOUND", "OK"])])
def test_the_level_says_which_calls_have_a_line(tiny_repository: Path, level: str, codes: list[str]) -> None:
    with local_service(tiny_repository, {"access-log": level}) as service:
        with grpc.insecure_channel(service.target) as channel:
            stub = models_pb2_grpc.ModelsStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.Get(models_pb2.ModelsGetRequest(model="nope"))
            stub.List(models_pb2.ModelsListRequest())
        service.stop()
        assert [one["code"] for one in service.log if one["event"] == "call.ended"] == codes

"""What only the wire `envoy` has: HTTP/1.1, JSON and gRPC-Web. `tests/wire/conformance` tests more of it."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from examples.local_service import LocalService
from examples.processes import resident_bytes
from tests.conftest import SHIPPED
from tests.end_to_end.web import BAD_JSON, JSON, PROTO, WEB, ask, check_list_in_grpc_web, check_list_in_proto
from tests.end_to_end.wire import lm, wire
from tests.services import local_service
from tests.waiting import until


@pytest.fixture(scope="module")
def service(tiny_repository: Path) -> Iterator[LocalService]:
    """Yields a service with the wire `envoy`, whatever wire the other services of this run have."""
    with local_service(tiny_repository, {"wire": "envoy"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] in ("warning", "error")]


@pytest.mark.parametrize("headers", [JSON, {**JSON, "connect-protocol-version": "1"}])
def test_json_is_answered_with_json(service: LocalService, headers: dict[str, str]) -> None:
    status, body, _ = ask(service.target, "/carousel.v1.Models/List", b"{}", headers)
    assert status == 200
    assert "tiny-lm" in [model["model"] for model in json.loads(body)["models"]]


@pytest.mark.parametrize("headers", [PROTO, {**PROTO, "connect-protocol-version": "1"}])
def test_protocol_buffers_are_answered_with_protocol_buffers(service: LocalService, headers: dict[str, str]) -> None:
    check_list_in_proto(ask(service.target, "/carousel.v1.Models/List", b"", headers))


@pytest.mark.parametrize(
    ("path", "body", "code", "status", "words"),
    [
        *BAD_JSON,
        ("Models/Got", b"{}", "unimplemented", 404, "/carousel.v1.Models/Got: no such method"),
    ],
)
def test_errors_of_json_requests_are_json(  # noqa: PLR0917
    service: LocalService, path: str, body: bytes, code: str, status: int, words: str
) -> None:
    answered, answer, _ = ask(service.target, f"/carousel.v1.{path}", body, JSON)
    assert (answered, json.loads(answer)["code"]) == (status, code)
    assert words in json.loads(answer)["message"]


def test_pages_of_other_origins_are_refused_without_a_list_of_origins(service: LocalService) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        status, answer, _ = ask(service.target, "/carousel.v1.Models/List", b"{}", {**JSON, **headers})
        assert (status, json.loads(answer)["code"]) == (403, "permission_denied")
    assert ask(service.target, "/", None, {"host": "evil.example"})[0] == 403
    assert ask(service.target, "/carousel.v1.Models/List", b"{}", {"content-type": "text/plain"})[0] == 415
    assert ask(service.target, "/nothing", None, {})[0] == 404


def test_requests_that_any_page_may_send_are_refused(service: LocalService) -> None:
    """Any page may send a form, or a GET without an origin."""
    message = urllib.parse.quote('{"model": "tiny-heads", "version": 1}')
    path = f"/carousel.v1.Models/Unload?connect=v1&encoding=json&message={message}"
    assert ask(service.target, path, None, {})[0] == 404
    assert ask(service.target, path, b"x", {"content-type": "text/plain"})[0] == 415
    status, body, _ = ask(service.target, "/carousel.v1.Models/Get", b'{"model": "tiny-heads"}', JSON)
    assert (status, json.loads(body)["model"]["version"]) == (200, 1)


def test_json_may_be_as_large_as_other_messages(service: LocalService) -> None:
    large = b'{"model": "tiny-lm"' + b" " * 3_000_000 + b"}"
    assert ask(service.target, "/carousel.v1.Models/Get", large, JSON)[0] == 200
    request = {"model": "tiny-bos", "targets": [{"ids": {"ids": [3] * 20_000}}]}
    status, body, _ = ask(service.target, "/carousel.v1.Inference/Score", json.dumps(request).encode(), JSON)
    assert status == 200
    assert len(body) > 200_000


def test_a_call_that_runs_out_of_time_is_not_answered_408(service: LocalService) -> None:
    """Browsers repeat a POST that was answered with 408, and a repeated feed would count twice."""
    opening: dict[str, object] = {"sessionId": "in-no-time", "open": {"model": "tiny-lm"}}
    assert ask(service.target, "/carousel.v1.Inference/Step", json.dumps(opening).encode(), JSON)[0] == 200
    feed = json.dumps({"sessionId": "in-no-time", "feed": {"tokenIds": [5] * 100_000}}).encode()
    status, body, _ = ask(service.target, "/carousel.v1.Inference/Step", feed, {**JSON, "connect-timeout-ms": "50"})
    assert (status, json.loads(body)["code"]) == (409, "aborted")


def test_pages_of_allowed_origins_may_call(tiny_repository: Path) -> None:
    page = {"origin": "https://app.example"}
    with local_service(tiny_repository, {"wire": "envoy", "allowed-origins": '["https://app.example"]'}) as service:
        assert ask(service.target, "/carousel.v1.Models/List", b"{}", {**JSON, **page})[0] == 200
        request = urllib.request.Request(
            f"http://{service.target}/carousel.v1.Models/List",
            headers={**page, "access-control-request-method": "POST"},
            method="OPTIONS",
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_grpc_web_is_accepted(service: LocalService) -> None:
    check_list_in_grpc_web(ask(service.target, "/carousel.v1.Models/List", b"\0" * 5, WEB))


async def test_reflection_is_served_under_its_new_name(service: LocalService) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {one.name for one in (await call.read()).list_services_response.service}
        await call.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.reflection.v1.ServerReflection")
        )
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        call.cancel()
    assert {"carousel.v1.Inference", "grpc.reflection.v1.ServerReflection"} <= listed


async def test_a_deadline_ends_a_call_and_frees_its_sessions(service: LocalService) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call: Any = inference_pb2_grpc.InferenceStub(channel).Stream(timeout=0.5)
        await call.write(pb.StreamRequest(request_id=1, session_id="late", open=lm()))
        assert (await call.read()).HasField("opened")
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    async def is_free() -> bool:
        async with wire(service.target) as stream:
            return (await stream.ask("late", open=lm())).HasField("opened")

    await until(is_free)  # the session of the call that ran out of time ends


async def test_a_client_that_has_sent_its_last_message_and_leaves_ends_its_generation(service: LocalService) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        request = pb.GenerateRequest(model="tiny-endless", decoding=pb.Decoding(max_tokens=60_000))
        call: Any = inference_pb2_grpc.InferenceStub(channel).Generate(request)
        await call.read()
        call.cancel()

    def is_ended() -> bool:
        with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("carousel_sessions_active{")]
        return bool(lines) and all(float(line.rsplit(" ", 1)[1]) == 0 for line in lines if "tiny-endless" in line)

    await until(is_ended)


def test_unused_slots_take_no_memory(tmp_path: Path) -> None:
    """The server has 50,000 slots of 36 KiB each. Envoy's allocator would write to all of this memory."""
    (tmp_path / "g2p-en").symlink_to(SHIPPED / "g2p-en")
    with local_service(tmp_path, {"wire": "envoy", "max-slots": 50_000}) as service:
        _, envoy = service.pids
        resident = resident_bytes(envoy)
    assert resident < 50_000 * 36 * 1024 / 2

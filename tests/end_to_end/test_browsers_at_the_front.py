"""Browsers' requests pass through the deployed Envoy to replicas, with either wire."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from carousel import Client
from examples.local_envoy import local_envoy
from tests.end_to_end import web
from tests.end_to_end.web import BAD_JSON, JSON, PROTO, WEB, Answer, check_list_in_grpc_web, check_list_in_proto
from tests.services import local_service, program

STREAM = {"content-type": "application/connect+json"}
PAGE = "https://app.example"


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def front(
    request: pytest.FixtureRequest, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Yields the address of an Envoy in front of two replicas with the same wire. Pages of two origins may call."""
    program("envoy")
    with ExitStack() as stack:
        replicas = [stack.enter_context(local_service(tiny_repository, {"wire": request.param})) for _ in range(2)]
        ports = [int(replica.target.rpartition(":")[2]) for replica in replicas]
        folder = tmp_path_factory.mktemp("front")
        pages = r"https://app\.example|http://localhost:8080"
        yield stack.enter_context(local_envoy(ports, folder, pages=pages)).target
        for replica in replicas:
            assert not [line for line in replica.log if line["level"] == "error"]


def ask(front: str, path: str, body: bytes | None, headers: Mapping[str, str], method: str = "POST") -> Answer:
    """Sends one request to a path of `carousel.v1`."""
    return web.ask(front, f"/carousel.v1.{path}", body, headers, method)


def framed(message: Mapping[str, Any]) -> bytes:
    """Returns one JSON message of a stream, with its flags and length in front."""
    data = json.dumps(message).encode()
    return b"\0" + len(data).to_bytes(4, "big") + data


def frames(body: bytes) -> list[tuple[int, Any]]:
    """Returns the JSON messages of a stream with their flags. Flags of 2 mark the last message, which contains the
    status."""
    found = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        found.append((body[0], json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return found


def test_json_is_answered_with_json(front: str) -> None:
    answer = ask(front, "Models/List", b"{}", JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert "tiny-lm" in [model["model"] for model in json.loads(answer.body)["models"]]
    large = b'{"model": "tiny-lm"' + b" " * 3_000_000 + b"}"  # more than Envoy buffers for a stream by default
    assert json.loads(ask(front, "Models/Get", large, JSON).body)["model"]["version"] == 1


@pytest.mark.parametrize("headers", [PROTO, {**PROTO, "connect-protocol-version": "1"}])
def test_protocol_buffers_are_answered_with_protocol_buffers(front: str, headers: dict[str, str]) -> None:
    check_list_in_proto(ask(front, "Models/List", b"", headers))


@pytest.mark.parametrize(("content_type", "body"), [("application/json", b"{}"), ("application/proto", b"")])
def test_a_streaming_method_requires_a_streaming_content_type(front: str, content_type: str, body: bytes) -> None:
    headers = {"content-type": content_type, "connect-protocol-version": "1"}
    answer = ask(front, "Inference/Generate", body, headers)
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "unimplemented")
    assert "use the content type application/connect+json" in json.loads(answer.body)["message"]


@pytest.mark.parametrize("spelled", ["Models/%E9", "%FF"])
def test_a_path_that_is_not_valid_text_is_not_found(front: str, spelled: str) -> None:
    assert ask(front, spelled, b"{}", JSON).status == 404


@pytest.mark.parametrize(
    ("path", "body", "code", "status", "words"),
    [
        *BAD_JSON,
        ("Models/Got", b"{}", "unimplemented", 404, ""),
    ],
)
def test_errors_of_json_requests_are_json(  # noqa: PLR0917
    front: str, path: str, body: bytes, code: str, status: int, words: str
) -> None:
    answer = ask(front, path, body, JSON)
    response = json.loads(answer.body)
    assert (answer.status, answer.headers["content-type"], response["code"]) == (status, "application/json", code)
    assert words in response["message"]


def test_streams_of_json_are_answered_message_by_message(front: str) -> None:
    request = framed({"model": "tiny-bos", "decoding": {"maxTokens": 3, "minTokens": 3}})
    *answers, end = frames(ask(front, "Inference/Generate", request, STREAM).body)
    assert sum(len(answer["generated"]["tokens"]) for _, answer in answers) == 3
    assert (end[0], list(end[1]), list(end[1]["metadata"])) == (2, ["metadata"], ["x-request-id"])
    ((flags, refusal),) = frames(ask(front, "Inference/Generate", framed({"modle": "tiny-bos"}), STREAM).body)
    assert (flags, refusal["error"]["code"]) == (2, "invalid_argument")
    assert '"modle"' in refusal["error"]["message"]
    opening = {"requestId": 1, "sessionId": "of-json", "open": {"model": "tiny-lm"}}
    opened, end = frames(ask(front, "Inference/Stream", framed(opening), STREAM).body)
    assert opened[1]["opened"]["model"] == "tiny-lm"
    assert (end[0], list(end[1])) == (2, ["metadata"])
    ((_, refusal),) = frames(ask(front, "Inference/Stream", framed({**opening, "open": 3}), STREAM).body)
    assert refusal["error"]["code"] == "invalid_argument"


def test_grpc_web_is_accepted(front: str) -> None:
    check_list_in_grpc_web(ask(front, "Models/List", b"\0" * 5, WEB))


def test_all_calls_of_a_session_go_to_one_replica_with_any_protocol(front: str) -> None:
    """Each replica has its sessions only in memory."""
    names = [f"one-{number}" for number in range(12)]
    with Client(front) as client:
        for name in names:
            client.session("tiny-lm", session_id=name, on_disconnect="keep").feed(["t3"])
    for name in names:
        answer = ask(front, "Sessions/Get", json.dumps({"sessionId": name}).encode(), {**JSON, "x-session-id": name})
        assert json.loads(answer.body)["session"]["position"] == "1"


def test_pages_of_allowed_origins_may_call(front: str) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, x-session-id"}
    for origin in (PAGE, "http://localhost:8080"):
        preflight = ask(front, "Models/List", None, {**asked, "origin": origin}, "OPTIONS")
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, origin)
        assert "x-session-id" in preflight.headers["access-control-allow-headers"]
        for headers, body in ((JSON, b"{}"), (WEB, b"\0" * 5)):
            answer = ask(front, "Models/List", body, {**headers, "origin": origin})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert b"tiny-lm" in answer.body


def test_pages_of_other_origins_are_refused(front: str) -> None:
    """This includes a page whose host name resolves to this machine (DNS rebinding): its browser sends no preflight."""
    for origin in ("http://evil.example", f"{PAGE}.evil.example", "null", f"http://{front}"):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        preflight = ask(front, "Models/List", None, headers, "OPTIONS")
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (403, None)
        answer = ask(front, "Models/List", b"{}", {**JSON, "origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (403, None)
        assert b"this origin is not allowed" in answer.body
        assert ask(front, "Models/List", b"\0" * 5, {**WEB, "origin": origin}).headers["grpc-status"] == "7"


def test_requests_that_any_page_may_send_are_refused(front: str) -> None:
    """Any page may send a form, or a GET without an origin."""
    message = urllib.parse.quote('{"model": "tiny-heads", "version": 1}')
    path = f"Models/Unload?connect=v1&encoding=json&message={message}"
    assert ask(front, path, None, {}, "GET").status == 415
    assert ask(front, path, b"x", {"content-type": "text/plain"}).status == 415
    assert ask(front, path, b"x", {"content-type": "application/x-www-form-urlencoded"}).status == 415
    assert json.loads(ask(front, "Models/Get", b'{"model": "tiny-heads"}', JSON).body)["model"]["version"] == 1

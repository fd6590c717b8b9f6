"""What the wire `envoy` has that the other has not: HTTP/1.1, JSON and gRPC-Web; and two processes in place of one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, models_pb2
from examples.local_service import LocalService, is_running, local_service
from tests.conftest import SHIPPED
from tests.end_to_end.wire import lm, wire
from tests.waiting import wait_until

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(tiny_repository: Path) -> Iterator[LocalService]:
    """A service behind Envoy, whatever the others of this run have."""
    with local_service(tiny_repository, {"wire": "envoy"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] in ("warning", "error")]


def ask(service: LocalService, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    """One HTTP/1.1 request: the status and the body of the answer."""
    request = urllib.request.Request(f"http://{service.target}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("headers", [JSON, {**JSON, "connect-protocol-version": "1"}])
def test_json_is_answered_with_json(service: LocalService, headers: dict[str, str]) -> None:
    status, body = ask(service, "/carousel.v1.Models/List", b"{}", headers)
    assert status == 200
    assert "tiny-lm" in [model["model"] for model in json.loads(body)["models"]]


@pytest.mark.parametrize(
    ("path", "body", "code", "status", "words"),
    [
        ("Models/Get", b'{"model": "nope"}', "not_found", 404, "model = 'nope'"),
        ("Models/Get", b'{"modle": "tiny-lm"}', "invalid_argument", 400, '"modle"'),
        ("Models/Get", b"{", "invalid_argument", 400, "not JSON of carousel.v1.ModelsGetRequest"),
        ("Models/Got", b"{}", "unimplemented", 404, "/carousel.v1.Models/Got: no such method"),
    ],
)
def test_what_is_wrong_with_json_is_said_in_json(  # noqa: PLR0917
    service: LocalService, path: str, body: bytes, code: str, status: int, words: str
) -> None:
    answered, told = ask(service, f"/carousel.v1.{path}", body, JSON)
    assert (answered, json.loads(told)["code"]) == (status, code)
    assert words in json.loads(told)["message"]


def test_web_pages_from_elsewhere_are_refused(service: LocalService) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        status, told = ask(service, "/carousel.v1.Models/List", b"{}", {**JSON, **headers})
        assert (status, json.loads(told)["code"]) == (403, "permission_denied")
    assert ask(service, "/", None, {"host": "evil.example"})[0] == 403
    assert ask(service, "/carousel.v1.Models/List", b"{}", {"content-type": "text/plain"})[0] == 415
    assert ask(service, "/nothing", None, {})[0] == 404


def test_what_any_page_may_send_is_no_call(service: LocalService) -> None:
    """A GET, which has no origin, and a form."""
    message = urllib.parse.quote('{"model": "tiny-heads", "version": 1}')
    path = f"/carousel.v1.Models/Unload?connect=v1&encoding=json&message={message}"
    assert ask(service, path, None, {})[0] == 404
    assert ask(service, path, b"x", {"content-type": "text/plain"})[0] == 415
    status, body = ask(service, "/carousel.v1.Models/Get", b'{"model": "tiny-heads"}', JSON)
    assert (status, json.loads(body)["model"]["version"]) == (200, 1)


def test_json_may_be_as_large_as_other_messages(service: LocalService) -> None:
    large = b'{"model": "tiny-lm"' + b" " * 3_000_000 + b"}"
    assert ask(service, "/carousel.v1.Models/Get", large, JSON)[0] == 200
    request = {"model": "tiny-bos", "targets": [{"ids": {"ids": [3] * 20_000}}]}
    status, body = ask(service, "/carousel.v1.Inference/Score", json.dumps(request).encode(), JSON)
    assert status == 200
    assert len(body) > 200_000


def test_pages_of_allowed_origins_may_call(tiny_repository: Path) -> None:
    page = {"origin": "https://app.example"}
    with local_service(tiny_repository, {"wire": "envoy", "allowed-origins": '["https://app.example"]'}) as service:
        assert ask(service, "/carousel.v1.Models/List", b"{}", {**JSON, **page})[0] == 200
        request = urllib.request.Request(
            f"http://{service.target}/carousel.v1.Models/List",
            headers={**page, "access-control-request-method": "POST"},
            method="OPTIONS",
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_grpc_web_is_spoken(service: LocalService) -> None:
    status, body = ask(service, "/carousel.v1.Models/List", b"\0" * 5, {"content-type": "application/grpc-web+proto"})
    length = int.from_bytes(body[1:5], "big")
    listed = models_pb2.ModelsListResponse.FromString(body[5 : 5 + length])
    assert (status, body[0], body[5 + length]) == (200, 0, 0x80)
    assert "tiny-lm" in [model.model for model in listed.models]
    assert b"grpc-status:0" in body[10 + length :]


async def test_reflection_is_there_by_its_new_name(service: LocalService) -> None:
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
    for _ in range(100):
        async with wire(service.target) as stream:
            if (await stream.ask("late", open=lm())).HasField("opened"):
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the session of the call that ran out of time was not let go")


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

    await asyncio.to_thread(wait_until, is_ended)


def test_room_for_sessions_takes_no_memory_until_they_come(tmp_path: Path) -> None:
    """Of 50,000 sessions with 36 KiB each; Envoy's allocator would write to all of it."""
    (tmp_path / "g2p-en").symlink_to(SHIPPED / "g2p-en")
    with local_service(tmp_path, {"wire": "envoy", "max-slots": 50_000}) as service:
        _, envoy = service.pids
        status = Path(f"/proc/{envoy}/status").read_text()
    (resident_kib,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
    assert resident_kib < 50_000 * 36 / 2


@pytest.mark.parametrize("victim", ["launcher", "envoy", "both"])
def test_nothing_is_left_when_a_process_is_killed(tiny_repository: Path, victim: str) -> None:
    with local_service(tiny_repository, {"wire": "envoy"}) as service:
        _, envoy = service.pids
        if victim != "envoy":
            service.process.kill()
        if victim != "launcher":
            os.kill(envoy, signal.SIGKILL)
        code = service.process.wait(10)
        wait_until(lambda: not is_running(envoy))
        assert code == (1 if victim == "envoy" else -signal.SIGKILL)
        if victim == "envoy":
            assert (service.log[-1]["event"], service.log[-1].get("signal")) == ("envoy.ended", "SIGKILL")


def test_a_port_has_one_server(service: LocalService, tiny_repository: Path) -> None:
    command = [sys.executable, "-m", "service", "--models", str(tiny_repository), "--store", "memory"]
    command += ["--wire", "envoy", "--metrics-port", "0", "--port", service.target.rpartition(":")[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "address already in use" in done.stderr

"""Clients in other languages: gRPC for C++, gRPC for Node, and Node's own HTTP/2.

If the compiler, Node or its package `@grpc/grpc-js` is missing, a test is skipped. If the compiler is missing and
TESTS_REQUIRE_SERVICES=1, it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.rpc import status_pb2

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2
from examples.local_service import LocalService
from tests.services import program
from tests.waiting import wait_until
from tests.wire.conformance.calls import path, read, recorded
from tests.wire.conformance.servicer import METHODS, struct

PROGRAMS = Path(__file__).parent / "programs"
WORDS = "100% «ñandú»"


@dataclass
class Answer:
    """The output of a program."""

    responses: list[bytes] = field(default_factory=list)
    status: int = -1
    message: str = ""
    details: bytes = b""
    trailers: list[tuple[str, bytes]] = field(default_factory=list)


class Program:
    """A program that makes calls."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def call(self, target: str, method: str, *messages: bytes, deadline_ms: int = 0, reads: int = 0) -> Answer:
        """Makes one call. Returns the program's output. See `programs/call.cc`."""
        arguments = [target, method, str(deadline_ms), str(reads), *(message.hex() for message in messages)]
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=True, timeout=60)
        found = Answer()
        for line in done.stdout.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "response":
                found.responses.append(bytes.fromhex(rest))
            elif kind == "status":
                found.status = int(rest)
            elif kind == "message":
                found.message = bytes.fromhex(rest).decode()
            elif kind == "details":
                found.details = bytes.fromhex(rest)
            else:
                name, _, value = rest.partition(" ")
                found.trailers.append((name, bytes.fromhex(value)))
        return found


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program that uses gRPC for C++."""
    compiler, config = program("g++"), program("pkg-config")
    found = subprocess.run([config, "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=False)
    if found.returncode:
        (pytest.fail if os.environ.get("TESTS_REQUIRE_SERVICES") == "1" else pytest.skip)("no libgrpc++-dev")
    built = tmp_path_factory.mktemp("programs") / "call"
    command = [compiler, "-std=c++17", "-o", str(built), str(PROGRAMS / "call.cc"), *found.stdout.split()]
    subprocess.run(command, check=True, timeout=300)
    return Program([str(built)])


def node() -> str:
    """Returns the path of Node. Skips the test without it; CI need not have Node."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not on this machine")
    return found


@pytest.fixture(scope="module")
def grpc_js() -> Program:
    """The program that uses gRPC for Node."""
    command = [node(), "-e", "require('@grpc/grpc-js')"]
    if subprocess.run(command, capture_output=True, cwd=PROGRAMS, check=False, timeout=60).returncode:
        pytest.skip("@grpc/grpc-js is not on this machine")
    return Program([node(), str(PROGRAMS / "call.js")])


@pytest.fixture(scope="module")
def node_http2() -> Program:
    """The program that uses Node's HTTP/2."""
    return Program([node(), str(PROGRAMS / "call_http2.js")])


@pytest.fixture(params=["cpp", "grpc_js", "node_http2"])
def caller(request: pytest.FixtureRequest) -> Program:
    """Each of the programs."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Program)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_answers(caller: Program, service: LocalService, method: str) -> None:
    messages = [struct(number=number).SerializeToString() for number in range(3 if "Stream" in method else 1)]
    if method == "ServerStream":
        messages = messages[:1]
    found = caller.call(service.target, path(method), *messages)
    expected = [{"count": 3.0}] if method == "ClientStream" else [{"number": float(at)} for at in range(len(messages))]
    assert ([read(response) for response in found.responses], found.status) == (expected, 0)


def test_clients_read_the_whole_status(caller: Program, service: LocalService) -> None:
    details = status_pb2.Status(code=9, message=WORDS).SerializeToString()
    trailers = [["k", "v"], ["k-bin", "00ff"], ["grpc-status-details-bin", details.hex()]]
    for after in (0, 2):
        request = struct(do="end", code=9, details=WORDS, trailers=trailers, after=after)
        found = caller.call(service.target, path("Stream"), request.SerializeToString())
        assert (len(found.responses), found.status, found.message, found.details) == (after, 9, WORDS, details)
        assert {("k", b"v"), ("k-bin", b"\0\xff")} <= set(found.trailers)


def test_a_deadline_is_kept(caller: Program, service: LocalService) -> None:
    request = struct(do="wait", name="a program's").SerializeToString()
    assert caller.call(service.target, path("Unary"), request, deadline_ms=300).status == 4


def test_a_call_that_is_cancelled_is_ended(
    caller: Program, service: LocalService, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    flood = struct(do="flood", name=name, size=1000, count=10**6).SerializeToString()
    found = caller.call(service.target, path("ServerStream"), flood, reads=5)
    assert (found.status, len(found.responses) >= 5) == (1, True)
    wait_until(lambda: isinstance(recorded(service, name), str))


def test_clients_can_call_the_real_service(caller: Program, carousel: LocalService) -> None:
    listed = caller.call(carousel.target, "/carousel.v1.Models/List", b"")
    models = models_pb2.ModelsListResponse.FromString(listed.responses[0]).models
    assert "tiny-lm" in [model.model for model in models]
    requests = [pb.StreamRequest(open=pb.Open(model="tiny-endless"))]
    requests += [pb.StreamRequest(feed=pb.Feed(token_ids=[5], position=at)) for at in range(50)]
    found = caller.call(
        carousel.target, "/carousel.v1.Inference/Stream", *(one.SerializeToString() for one in requests)
    )
    positions = [pb.StreamResponse.FromString(response).position for response in found.responses]
    assert (positions, found.status) == (list(range(51)), 0)
    refused = caller.call(
        carousel.target, "/carousel.v1.Inference/Generate", pb.GenerateRequest(model="ñ%").SerializeToString()
    )
    assert refused.status == 3
    assert "model = 'ñ%'" in refused.message
    assert status_pb2.Status.FromString(refused.details).message == refused.message
    assert "carousel-error-bin" in dict(refused.trailers)

"""docs/clients.md is correct: its programs run, and its tables contain every reason of an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from carousel.v1 import error_pb2, inference_pb2
from examples.local_service import LocalService
from service.api.status import TABLE
from tests.services import local_service, program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
HOST = "localhost:50051"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def table(title: str) -> dict[str, str]:
    """Returns the table below a sentence of the page: the second column, by reason."""
    rows = PAGE.partition(title)[2].partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| ([^|]+?) \| [^|]+ \|$", rows, re.MULTILINE)
    assert len(found) == len(rows.splitlines())
    assert len(dict(found)) == len(found)
    return dict(found)


def fields(*files: FileDescriptor) -> set[str]:
    """Returns the names of all fields and oneofs of the files' messages."""
    messages = [message for file in files for message in file.message_types_by_name.values()]
    return {name for message in messages for name in [*message.fields_by_name, *message.oneofs_by_name]}


@pytest.fixture(scope="module")
def browsers_service() -> Iterator[LocalService]:
    """Yields a real service of the shipped models that accepts JSON."""
    with local_service(ROOT / "model_repository", {"wire": "envoy"}) as service:
        yield service


def test_the_table_has_every_reason_that_the_server_answers_with_its_code() -> None:
    assert table("Errors from the server:") == {row.reason: row.code.name for row in TABLE.values()}


def test_the_table_has_every_reason_that_the_client_gives() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "carousel").glob("*.py"))
    given = set(re.findall(r'reason="([A-Z_]+)"', sources))
    for name in re.findall(r"reason=([A-Z_]+)\b", sources):
        given |= set(re.findall(rf'^{name} = "([A-Z_]+)"', sources, re.MULTILINE))
    assert {"CONNECTION_LOST", "CLIENT_CLOSED", "FORKED"} <= given
    assert set(table("Errors that the Python client raises itself:")) == given


@pytest.mark.parametrize("at", range(len(blocks("python"))))
def test_each_python_program_of_the_page_runs(at: int, shipped_service: LocalService) -> None:
    code = blocks("python")[at]
    compile(code, "docs/clients.md", "exec")
    if HOST not in code:
        assert "carousel.example.com" in code
        return
    code = code.replace(HOST, shipped_service.target)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout
    assert not ran.stderr


def test_each_curl_of_the_page_is_answered(browsers_service: LocalService) -> None:
    program("curl")
    (commands,) = [block for block in blocks("sh") if "curl" in block]
    for command in commands.splitlines():
        output = subprocess.run(
            command.replace(HOST, browsers_service.target), shell=True, capture_output=True, text=True, check=True
        )
        assert '"models"' in output.stdout or '"fed"' in output.stdout, output.stdout


def test_the_browsers_program_runs(browsers_service: LocalService, tmp_path: Path) -> None:
    """Runs in Node, whose `fetch` is the one that browsers have."""
    (code,) = blocks("js")
    (tmp_path / "page.mjs").write_text(code.replace(HOST, browsers_service.target))
    ran = subprocess.run(
        [program("node"), "page.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["K", "EH", "R", "AH", "S", "EH", "L", "EY", "T"]


def test_the_node_program_uses_existing_fields() -> None:
    (code,) = blocks("javascript")
    known = fields(inference_pb2.DESCRIPTOR, error_pb2.DESCRIPTOR)
    for text in re.findall(r"(?:request = |write\()(\{.*\})", code):
        assert set(re.findall(r"\b([a-z]\w*)(?=[:,] )", text)) <= known, text
    used = set(re.findall(r"(?:\b(?:answer|error|generated|fed|token)|(?:outputs|tokens)\[0\])(?=\.(\w+))", code))
    assert used - known <= {"code", "details", "tokens"}
    assert {"request_id", "response", "reason", "position"} <= used


def test_the_node_program_runs(shipped_service: LocalService, tmp_path: Path) -> None:
    """Runs only if NODE_PATH contains gRPC for Node."""
    path = Path(os.environ.get("NODE_PATH", ""))
    if not (path / "@grpc" / "grpc-js").exists() or not (path / "@grpc" / "proto-loader").exists():
        pytest.skip("NODE_PATH has no @grpc/grpc-js and @grpc/proto-loader")
    (code,) = blocks("javascript")
    (tmp_path / "client.js").write_text(code.replace(HOST, shipped_service.target))
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    ran = subprocess.run(
        [program("node"), "client.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["K", "EH", "R", "AH", "S", "EH", "L", "1", "EH", "3", "AH"]


def test_the_cpp_program_uses_existing_fields() -> None:
    (code,) = blocks("cpp")
    known = fields(inference_pb2.DESCRIPTOR, error_pb2.DESCRIPTOR)
    assert set(re.findall(r"\b(?:set|mutable|add|has)_(\w+)\(", code)) - {"deadline"} <= known
    chains = re.findall(r"\bresponse((?:\.\w+\(\d*\))+)", code)
    assert {name for chain in chains for name in re.findall(r"\.(\w+)\(", chain)} - {"has_error"} <= known
    assert chains


@pytest.mark.timeout(300)
def test_the_cpp_program_is_built_and_runs(shipped_service: LocalService, tmp_path: Path) -> None:
    """Runs the page's commands. The target is an argument of the program, so that the program is built once."""
    for name in ("protoc", "grpc_cpp_plugin", "g++", "pkg-config"):
        program(name)
    if subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"], check=False).returncode:
        require = os.environ.get("TESTS_REQUIRE_SERVICES") == "1"
        (pytest.fail if require else pytest.skip)("no libgrpc++-dev and libprotobuf-dev")
    (code,), (commands,) = blocks("cpp"), [block for block in blocks("sh") if "g++" in block]
    code = code.replace(f'"{HOST}"', "arguments[1]").replace("main()", "main(int, char** arguments)")
    (tmp_path / "client.cc").write_text(code)
    (tmp_path / "proto").symlink_to(ROOT / "proto")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=False)

    ran = run(commands.replace("./client", f"./client {shipped_service.target}"))
    assert ran.returncode == 0, ran.stderr[-2000:]
    output = [line.split() for line in ran.stdout.splitlines()]
    assert [line[0] for line in output] == ["1", "2", "3", "4", "0"]
    assert all(len(line) == 2 for line in output[:-1])
    failed = run("./client 127.0.0.1:1")
    assert failed.returncode == 1
    assert failed.stderr.startswith("14 ")

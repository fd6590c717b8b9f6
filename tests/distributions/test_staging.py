"""Each distribution's source has what it needs, in one package, and no reference to the checkout."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import carousel
from distributions.metadata import MetadataError
from distributions.metadata import client as client_metadata
from distributions.staging import Checkout, stage_client, stage_server
from tests.conftest import ROOT

CHECKOUT = Checkout.at(ROOT)
MOVED = {"service", "export", "models"}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("staged")
    return {"client": stage_client(CHECKOUT, folder / "client"), "server": stage_server(CHECKOUT, folder / "server")}


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def imported(tree: ast.Module) -> set[str]:
    """Returns the top-level packages that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_the_version_is_in_one_place(staged: dict[str, Path]) -> None:
    assert {project(folder)["version"] for folder in staged.values()} == {carousel.__version__}
    assert f'"{carousel.__version__}"' not in (ROOT / "pyproject.toml").read_text()


def test_the_client_needs_grpcio_and_protobuf_alone(staged: dict[str, Path]) -> None:
    needs = project(staged["client"])["dependencies"]
    assert {re.match(r"[\w-]+", need).group() for need in needs} == {"grpcio", "protobuf"}  # type: ignore[union-attr]
    assert not set().union(*(imported(ast.parse(path.read_text())) for path in staged["client"].rglob("*.py"))) & MOVED


def test_the_clients_bounds_are_those_of_its_generated_code() -> None:
    """grpcio and protobuf refuse code of a newer generator."""
    needs = dict(need.split(">=") for need in CHECKOUT.client["dependencies"])
    generated = (ROOT / "carousel" / "v1" / "sessions_pb2_grpc.py").read_text()
    (grpc_version,) = re.findall(r"GRPC_GENERATED_VERSION = '(.*)'", generated)
    assert needs["grpcio"] == grpc_version
    messages = (ROOT / "carousel" / "v1" / "sessions_pb2.py").read_text()
    (protobuf,) = re.findall(r"# Protobuf Python Version: (\d+\.\d+)", messages)
    assert needs["protobuf"] == f"{protobuf},<{int(protobuf.split('.')[0]) + 2}", "a runtime takes the major before it"


def test_the_server_needs_the_client_of_its_version(staged: dict[str, Path]) -> None:
    found = project(staged["server"])
    assert found["dependencies"][0] == f"carousel-client=={carousel.__version__}"
    assert set(CHECKOUT.project["project"]["dependencies"]) < set(found["dependencies"])
    assert found["optional-dependencies"]["cli"] == [f"carousel-client[cli]=={carousel.__version__}"]


def test_the_protos_are_beside_the_stubs(staged: dict[str, Path]) -> None:
    protos = {path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto")}
    assert protos
    assert all((staged["client"] / path).read_bytes() == (ROOT / "proto" / path).read_bytes() for path in protos)


@pytest.mark.parametrize(("name", "package"), [("client", "carousel"), ("server", "carousel_server")])
def test_it_has_one_package(staged: dict[str, Path], name: str, package: str) -> None:
    assert {path.name for path in staged[name].iterdir()} == {
        "pyproject.toml",
        "build_backend.py",
        "README.md",
        "LICENSE",
        package,
    }
    assert (staged[name] / package / "py.typed").is_file()
    assert not list(staged[name].rglob("__pycache__"))


def test_no_module_of_the_server_knows_its_old_name(staged: dict[str, Path]) -> None:
    """Neither its imports nor its messages use the old name."""
    allowed = {"carousel", "carousel_server", *sys.stdlib_module_names}
    package = staged["server"] / "carousel_server"
    others: set[str] = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        others |= imported(tree) - allowed
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"-m (service|export|models)\b", node.value), path
    assert not others & MOVED
    assert {path.relative_to(package).parts[0] for path in package.rglob("*.py")} >= MOVED


def test_a_description_installs_files_and_not_unpublished_names(staged: dict[str, Path]) -> None:
    """The exception is an extra of a distribution that is installed by then."""
    for name, folder in staged.items():
        commands = re.findall(r"^pip install ([^#\n]*?) *(?:#.*)?$", (folder / "README.md").read_text(), re.MULTILINE)
        assert "carousel_client-*.whl carousel_serving-*.whl" in commands
        ours = [command for command in commands if "carousel-" in command]
        assert ours == ({"client": [], "server": ["'carousel-serving[export]'"]}[name])
        assert not ours or commands.index(ours[0]) > commands.index("carousel_client-*.whl carousel_serving-*.whl")


def test_documents_install_the_torch_that_the_exporter_needs(staged: dict[str, Path]) -> None:
    (needed,) = (need for need in CHECKOUT.project["project"]["optional-dependencies"]["export"] if "torch=" in need)
    for path in (staged["server"] / "README.md", ROOT / "docs" / "models.md"):
        found = re.findall(
            r"^pip install (torch\S*) --index-url https://download.pytorch.org/whl/cpu$", path.read_text(), re.M
        )
        assert found == [needed], path


def test_messages_name_only_existing_files(staged: dict[str, Path]) -> None:
    """This holds for messages, help texts and docstrings of commands. Docstrings of modules are for readers of the
    code."""
    for folder in staged.values():
        for path in folder.rglob("*.py"):
            tree = ast.parse(path.read_text())
            about_itself = tree.body[0].value if tree.body and isinstance(tree.body[0], ast.Expr) else None
            for node in ast.walk(tree):
                if node is not about_itself and isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found = re.sub(r"https?://\S+", "", node.value)
                    for named in re.findall(r"\b(?:\w+/)+\w+\.(?:md|py)\b", found):
                        assert (folder / named).is_file(), (path, named)


def test_a_subcommand_of_the_exporter_is_named_with_its_command(staged: dict[str, Path]) -> None:
    package = staged["server"] / "carousel_server"
    commands = (package / "export" / "commands.py").read_text()
    recipes = "|".join(re.findall(r'^_app\.command\("([\w-]+)"', commands, re.MULTILINE))
    bare = re.compile(rf"(?<!carousel-)\bexport\s+({recipes})\b")
    assert bare.search("use export onnx FILE")
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not bare.search(node.value), (path, node.lineno)


def test_the_licence_of_everything_inside_is_told(staged: dict[str, Path]) -> None:
    notices = (staged["server"] / "carousel_server" / "service" / "page" / "THIRD_PARTY.txt").read_text()
    inside = set(re.findall(r"[\w.-]+", " ".join(re.findall("^Licence: (.*)$", notices, re.MULTILINE)))) - {"AND"}
    server, client = project(staged["server"]), project(staged["client"])
    assert set(server["license"].split(" AND ")) == {client["license"], *inside}
    assert server["license-files"] == ["LICENSE", "carousel_server/service/page/THIRD_PARTY.txt"]
    assert (client["license"], client["license-files"]) == ("Apache-2.0", ["LICENSE"])
    for folder in staged.values():
        assert all((folder / name).is_file() for name in project(folder)["license-files"])


def test_a_models_card_gives_existing_commands(staged: dict[str, Path]) -> None:
    place = Path("model_repository", "co2-forecast", "1", "README.md")
    card, before = (staged["server"] / "carousel_server" / place).read_text(), (ROOT / place).read_text()
    commands = [line for text in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) for line in text.splitlines()]
    assert commands == [
        "python -m carousel_server.models.recipes.co2 train --run runs/co2",
        "carousel-export co2 runs/co2/best.safetensors --to model_repository",
    ]
    assert card.replace("carousel_server.", "").replace("carousel-export", "python -m export") == before
    for path in (staged["server"] / "carousel_server").rglob("*.md"):
        assert not re.search(r"-m (service|export|models)\b|\./scripts/|checkout", path.read_text()), path


def test_every_module_is_there_and_nothing_but_names_is_changed(staged: dict[str, Path]) -> None:
    for folder in MOVED:
        for path in CHECKOUT.files(folder):
            moved = (staged["server"] / "carousel_server" / path.relative_to(ROOT)).read_text()
            for new, old in {
                "carousel_server.": "",
                "carousel_server/": "",
                "carousel-server": "python -m service",
                "carousel-export": "python -m export",
            }.items():
                assert new not in path.read_text(), path
                moved = moved.replace(new, old)
            assert moved == path.read_text(), path


def test_commands_refer_to_existing_functions(staged: dict[str, Path]) -> None:
    for folder in staged.values():
        for place in project(folder)["scripts"].values():
            module, function = place.split(":")
            tree = ast.parse((folder / f"{module.replace('.', '/')}.py").read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_example_is_inside(staged: dict[str, Path]) -> None:
    (example,) = (staged["server"] / "carousel_server" / "model_repository").iterdir()
    assert example.name == "co2-forecast"
    assert (example / "1" / "step.onnx").read_bytes() == (
        ROOT / "model_repository" / "co2-forecast" / "1" / "step.onnx"
    ).read_bytes()


def test_no_wheel_is_made_of_the_checkouts_folders() -> None:
    """A wheel of the checkout would install the names of its folders into users' environments."""
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["build-backend"]
    pytest.importorskip("setuptools")
    module = importlib.import_module(backend)
    for build in (module.build_wheel, module.build_sdist):
        with pytest.raises(SystemExit, match=r"\./scripts/build makes wheels and sdists"):
            build("dist")


def test_a_project_that_cannot_build_says_what_is_missing() -> None:
    extras = {**CHECKOUT.project["project"]["optional-dependencies"], "dev": ["ruff"]}
    broken = {**CHECKOUT.project, "project": {**CHECKOUT.project["project"], "optional-dependencies": extras}}
    with pytest.raises(MetadataError, match="`dev` must have flit-core"):
        client_metadata(broken, "1.0")

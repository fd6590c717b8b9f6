"""The structure of the code: the imports between modules, the packages that serving needs, and the size of each
file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    path
    for room in ("service", "carousel", "export", "models", "simulation", "distributions")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ROOT / "carousel" / "v1" not in path.parents
]
MAX_LINES = 320


def module_name(path: Path) -> str:
    """Returns the name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, *, is_package: bool, code: str, known: set[str]) -> set[str]:
    """Returns the modules of `known` that the code of module `name` imports, also in functions and under
    TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")
                above = above[: len(above) + is_package - node.level]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return (found & known) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the sets of two or more modules that import each other, directly or indirectly."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        rest = [name]
        while rest:
            new = graph[rest.pop()] - seen
            seen |= new
            rest += new
        reached[name] = seen
    found = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return [list(circle) for circle in sorted(found) if circle]


def imported_by(code: str) -> set[str]:
    """Returns the top-level packages that are loaded after `code` has run in a new process."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_serving_imports_no_torch_even_indirectly() -> None:
    """Serving imports none of the packages that exporting and training need, either."""
    loaded = imported_by("import service.__main__, service.server")
    assert {"service", "onnxruntime", "grpc"} <= loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "safetensors", "export", "models", "simulation"}


def test_the_client_needs_grpcio_and_protobuf_and_no_more() -> None:
    loaded = imported_by("import carousel")
    assert {"carousel", "grpc"} <= loaded
    assert not loaded & {"numpy", "onnxruntime", "pydantic", "structlog", "prometheus_client", "grpc_status", "torch"}
    assert not loaded & {"service", "export", "models"}


def test_imports_run_one_way() -> None:
    """The contracts are in pyproject.toml."""
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports under TYPE_CHECKING count too, so that each file can be read and tested with only the files below it."""
    names = {module_name(path): path for path in MODULES}
    known = set(names)
    graph = {
        name: imports(name, is_package=path.name == "__init__.py", code=path.read_text(encoding="utf-8"), known=known)
        for name, path in names.items()
    }
    assert "service.engine.core" in graph["service.engine.engine"], "imports are not found"
    assert circles(graph) == []


def test_a_circle_is_found_however_it_is_imported() -> None:
    known = {"a", "a.b", "a.c", "a.d", "a.e"}
    code = {
        "a": "",
        "a.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.c import C",
        "a.c": "def late():\n    from . import d",
        "a.d": "import a.b\nimport os",
        "a.e": "from a import b\nfrom .d import D",
    }
    graph = {name: imports(name, is_package=name == "a", code=text, known=known) for name, text in code.items()}
    assert graph == {"a": set(), "a.b": {"a.c"}, "a.c": {"a.d"}, "a.d": {"a.b"}, "a.e": {"a.b", "a.d"}}
    assert circles(graph) == [["a.b", "a.c", "a.d"]]


def test_modules_of_every_package_are_checked() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == {
        "service",
        "carousel",
        "export",
        "models",
        "simulation",
        "distributions",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_is_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "it has no docstring"
    assert len(text.splitlines()) <= MAX_LINES

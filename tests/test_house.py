"""The shape of the house: who imports whom, what serving needs, how large a room may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    path
    for room in ("service", "carousel", "export", "models", "simulation")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ROOT / "carousel" / "v1" not in path.parents
]
MAX_LINES = 320


def imported_by(code: str) -> set[str]:
    """The top packages that are in memory after `code` has run in a process of its own."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_serving_imports_no_torch_even_indirectly() -> None:
    """Nor what exporting and training need."""
    loaded = imported_by("import service.__main__, service.server")
    assert {"service", "onnxruntime", "grpc"} <= loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "safetensors", "export", "models", "simulation"}


def test_the_client_needs_grpcio_and_protobuf_and_no_more() -> None:
    loaded = imported_by("import carousel")
    assert {"carousel", "grpc"} <= loaded
    assert not loaded & {"numpy", "onnxruntime", "pydantic", "structlog", "prometheus_client", "grpc_status", "torch"}
    assert not loaded & {"service", "export", "models"}


def test_imports_run_one_way() -> None:
    """The contracts stand in pyproject.toml."""
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_modules_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == {
        "service",
        "carousel",
        "export",
        "models",
        "simulation",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_is_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "it has no docstring"
    assert len(text.splitlines()) <= MAX_LINES

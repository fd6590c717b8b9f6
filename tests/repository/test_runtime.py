"""Graphs are run without telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["service", "export"])
def test_onnx_runtime_sends_no_telemetry(tmp_path: Path, package: str) -> None:
    """With telemetry, ONNX Runtime leaves an identifier in the home folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "CI"))}
    command = [sys.executable, "-c", f"import {package}, onnxruntime; onnxruntime.SessionOptions()"]
    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, timeout=60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "icrosoft" in str(path)]

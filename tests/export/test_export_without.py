"""An export that lacks a package says how to install it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", "random-lm --name a --to a", "export"),
        ("onnx", "onnx a.onnx --name a --to a", "export"),
        ("torch", "co2 a.safetensors --to a", "export"),
        ("tqdm", "co2 a.safetensors --to a", "train"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(missing: str, arguments: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from export.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    expected = f"nothing was written: {missing} is not installed: ./scripts/setup {extra} (in {ROOT})"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, expected)

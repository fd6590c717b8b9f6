"""What is refused before Envoy starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service.process import StartError
from service.settings import Settings
from service.wire import choice
from service.wire.envoy import launcher
from service.wire.envoy.library import MissingError


def refuse() -> str:
    raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")


def without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This happens in a container with a read-only root and no /tmp."""
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    return "no folder for temporary files is writable: mount one (for a container: --tmpfs /tmp), or set TMPDIR"


def in_a_folder_too_deep_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return f"the path {folder} is too long for a socket in it: set TMPDIR to a path of at most 72 bytes"


@pytest.mark.parametrize("prepare", [without_a_folder, in_a_folder_too_deep_for_a_socket])
def test_without_a_folder_for_its_socket_envoy_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path, pytest.MonkeyPatch], str]
) -> None:
    reason = prepare(tmp_path, monkeypatch)
    assert choice.choose(Settings(wire="auto")) == ("grpcio", f"wire = auto, and Envoy cannot be used: {reason}")
    with pytest.raises(MissingError) as refused:
        choice.choose(Settings(wire="envoy"))
    assert str(refused.value) == f"wire = envoy: {reason}"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    with pytest.raises(StartError, match=r"^wire = envoy: .*No such file or directory: .*not-there/carousel-envoy-"):
        launcher.serve(Settings(store="memory", port=0), [])

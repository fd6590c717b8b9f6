"""What the launcher refuses before it starts Envoy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from service.process import StartError
from service.settings import Settings
from service.wire.envoy import launcher


def test_without_a_folder_for_temporary_files_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens in a container with a read-only root and no /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    with pytest.raises(StartError, match="no folder for temporary files is writable: mount one"):
        launcher.serve(Settings(store="memory", port=0), [])


def test_a_folder_whose_path_is_too_long_for_a_socket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(
        StartError, match=r"longlong is too long for a socket in it: set TMPDIR to a path of at most 72 "
    ):
        launcher.serve(Settings(store="memory", port=0), [])
    assert list(folder.iterdir()) == []

"""What tests share is made once, and again only if it failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_once import made_once


def test_a_folder_is_made_once_and_is_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "part").write_text("a")
        if len(calls) == 1:
            raise OSError("the disk is full")
        (folder / "whole").write_text("b")

    name = tmp_path_factory.mktemp("name").name  # that of no other test
    with pytest.raises(OSError, match="the disk is full"):
        made_once(tmp_path_factory, name, make)
    folders = {made_once(tmp_path_factory, name, make) for _ in range(3)}
    assert len(calls) == 2
    (folder,) = folders
    assert sorted(path.name for path in folder.iterdir()) == ["part", "whole"]

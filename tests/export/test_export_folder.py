"""A folder appears completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.errors import ExportError
from export.folder import write_folder


class Interrupted(Mapping[str, bytes]):
    """Files of which the second is never written, as when a user presses Ctrl-C or the disk is full."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __iter__(self) -> Iterator[str]:
        return iter(("first", "second"))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> bytes:
        if name == "second":
            raise self._error
        return b"1"


def test_files_arrive_together(tmp_path: Path) -> None:
    """Parents are created, files are written, and the parent contains nothing else."""
    folder = tmp_path / "model" / "1"
    write_folder(folder, {"a": b"1", "b": b"2"})
    assert _content(folder) == {"a": b"1", "b": b"2"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), SystemExit(143)])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """No partial folder, no hidden folder and no new parent is left."""
    with pytest.raises(type(error)):
        write_folder(tmp_path / "model" / "1", Interrupted(error))
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_other_versions_alone(tmp_path: Path) -> None:
    """An existing parent and its content stay."""
    write_folder(tmp_path / "model" / "1", {"a": b"1"})
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model" / "2", Interrupted(KeyboardInterrupt()))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    """The existing folder does not change, and the message says what to do."""
    write_folder(tmp_path / "1", {"a": b"1"})
    with pytest.raises(ExportError, match="exists: use another version, or replace it with --replace"):
        write_folder(tmp_path / "1", {"a": b"2"})
    assert _content(tmp_path / "1") == {"a": b"1"}


def test_of_two_concurrent_exports_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that appears while another is being written is not overwritten."""
    rename = Path.rename

    def late_rename(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        write_folder(tmp_path / "1", {"a": b"theirs"})
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late_rename)
    with pytest.raises(ExportError, match="exists: use another version"):
        write_folder(tmp_path / "1", {"a": b"ours"})
    assert _content(tmp_path / "1") == {"a": b"theirs"}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_replacing_leaves_only_the_new(tmp_path: Path) -> None:
    """Files that the new version does not have are removed, and so is the old folder."""
    write_folder(tmp_path / "1", {"a": b"1", "b": b"1"})
    write_folder(tmp_path / "1", {"a": b"2"}, replace=True)
    assert _content(tmp_path / "1") == {"a": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_replace_without_an_old_folder_writes_the_folder(tmp_path: Path) -> None:
    """--replace permits a replacement. It does not require one."""
    write_folder(tmp_path / "1", {"a": b"1"}, replace=True)
    assert _content(tmp_path / "1") == {"a": b"1"}


def test_a_failed_replacement_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption between the two renames, the old folder is back at its place."""
    write_folder(tmp_path / "1", {"a": b"1"})
    rename = Path.rename

    def failing_rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".partial-"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "1", {"a": b"2"}, replace=True)
    assert _content(tmp_path / "1") == {"a": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def _content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}

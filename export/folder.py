"""Writes a folder so that it appears whole or not at all.

1. Files are written and fsynced in a hidden sibling folder, `.partial-...`. Scanners skip names that begin with a dot.
2. One rename publishes the folder. The rename fails when another process created the folder first.
3. When writing is interrupted, the sibling and the parents made for it are removed. Only a kill leaves the sibling.
4. To replace a folder, the old one is renamed to `.replaced-...`, and renamed back if the new one cannot be published.
   Between the two renames the folder does not exist.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from export.errors import ExportError


def write_folder(folder: Path, files: Mapping[str, bytes], *, replace: bool = False) -> None:
    """Writes `files`, by name, into the new folder `folder`, and creates its parents.

    Raises ExportError when it exists and `replace` is false; OSError when the files cannot be written.
    """
    refuse_existing(folder, replace=replace)
    parent = folder.parent
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    partial = parent / f".partial-{folder.name}-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            _write(partial / name, content)
        _fsync(partial)
        _publish(partial, folder, replace=replace)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            _remove_if_empty(path)
        raise
    _fsync(parent)


def refuse_existing(folder: Path, *, replace: bool) -> None:
    """Raises ExportError when `folder` exists and may not be replaced."""
    if folder.exists() and not replace:
        raise ExportError(f"{folder} exists: use another version, or replace it with --replace")


def _publish(partial: Path, folder: Path, *, replace: bool) -> None:
    if not (replace and folder.exists()):
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                refuse_existing(folder, replace=False)  # another export created it first
            raise
        return
    aside = folder.parent / f".replaced-{folder.name}-{secrets.token_hex(4)}"
    folder.rename(aside)
    try:
        partial.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return

"""Checks a bundle's folder: it may contain regular files, folders, and links that stay inside the folder.

A FIFO or a device could block its reader forever, and a link could make the server read any file it has access to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

MAX_ENTRIES = 1000
"""Most files and folders in one bundle."""
MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Most bytes of the manifest and of each vocabulary, which are read into memory whole."""
Stamp = tuple[int, ...]
"""Numbers of a file's status: a file that replaces it has other numbers."""
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FilesError(Exception):
    """A bundle's folder contains something that it may not. The message names it."""


def check_files(folder: Path, *, texts: Iterable[str] = ()) -> None:
    """Checks every entry of a bundle's folder without opening a file. texts: names of files that will be read whole.

    Raises FilesError for more than `MAX_ENTRIES` entries, for a file of `texts` over `MAX_TEXT_BYTES`, for an entry
    that is not a regular file, folder or link, and for a link that leads out of the folder or nowhere. Raises OSError
    for an entry whose status cannot be read. A missing file of `texts` is no error here; its reader raises.
    """
    root = folder.resolve(strict=True)
    for number, entry in enumerate(_entries(root), 1):
        name = os.path.relpath(entry.path, root)
        if number > MAX_ENTRIES:
            raise FilesError(
                f"the bundle's folder has more than {MAX_ENTRIES} files and folders, the limit: remove those that do"
                " not belong to the bundle"
            )
        if entry.is_symlink():
            _check_link(Path(entry.path), name, root)
        mode = entry.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            kind = next((kind for is_one, kind in _KINDS if is_one(mode)), "a file of an unknown kind")
            raise FilesError(f"{name} is {kind}: a bundle can have only regular files and folders")
    for name in texts:
        path = root / name
        if path.exists() and (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise FilesError(f"{name} has {size} bytes, the limit is {MAX_TEXT_BYTES}")


def stamp_of(file: Path | int) -> Stamp:
    """Returns modification time in ns and inode of a file. file: its path, or the descriptor of an open file. Raises
    OSError."""
    status = os.stat(file)
    return status.st_mtime_ns, status.st_ino


def stamps_of(folder: Path, name: str) -> tuple[Stamp, frozenset[Stamp]]:
    """Returns the stamp of file `name` in a bundle's folder, and stamps of the first `MAX_ENTRIES` entries. The
    latter are others after any change of the bundle, also of a file's mode. Both are empty when something cannot be
    read. Opens no file."""
    try:
        there = [entry.stat(follow_symlinks=False) for entry in islice(_entries(folder), MAX_ENTRIES)]
        stamp = stamp_of(folder / name)
    except (FilesError, OSError):
        return (), frozenset()
    return stamp, frozenset((status.st_ctime_ns, status.st_ino, status.st_size, status.st_mode) for status in there)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the entries of a folder and of all folders in it. Links are not followed."""
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as there:
                entries = sorted(islice(there, MAX_ENTRIES + 1), key=lambda entry: entry.name)
        except OSError as error:
            raise FilesError(f"the folder {os.path.relpath(path, folder)} cannot be read: {error.strerror}") from error
        yield from entries
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _check_link(link: Path, name: str, root: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        raise FilesError(f"{name} is a broken link to {os.readlink(link)}") from None
    if not target.is_relative_to(root):
        raise FilesError(f"{name} is a link to {target}, outside the bundle: copy the file into the bundle")

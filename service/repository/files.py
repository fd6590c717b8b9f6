"""What may lie in a bundle's folder: regular files and folders, and links to those that lead nowhere else.

A FIFO or a device could hold up whoever reads it for ever, and a link could make the server read any file that it may.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

MAX_ENTRIES = 1000
"""Files and folders of one bundle."""
MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Of the manifest, and of each vocabulary, which are held in memory whole."""
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FilesError(Exception):
    """A bundle's folder has what it must not have; the message names it."""


def check_files(folder: Path, *, texts: Iterable[str] = ()) -> None:
    """Looks at everything in a bundle's folder, and opens nothing. texts: names of files that are to be read whole.

    Raises FilesError for more than `MAX_ENTRIES` entries, a file of `texts` over `MAX_TEXT_BYTES`, what is no regular
    file, folder or link, and a link that leads out of the folder or nowhere. Raises OSError for what cannot be looked
    at; a file of `texts` that is missing is left to who reads it.
    """
    root = folder.resolve(strict=True)
    for number, entry in enumerate(_entries(root), 1):
        name = os.path.relpath(entry.path, root)
        if number > MAX_ENTRIES:
            raise FilesError(f"its folder has more than {MAX_ENTRIES} files and folders, expected those of one bundle")
        if entry.is_symlink():
            _check_link(Path(entry.path), name, root)
        mode = entry.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            kind = next((kind for is_one, kind in _KINDS if is_one(mode)), "of an unknown kind")
            raise FilesError(f"{name} is {kind}: a bundle has regular files and folders, and nothing else")
    for name in texts:
        path = root / name
        if path.exists() and (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise FilesError(f"{name} has {size} bytes, the most that it may have is {MAX_TEXT_BYTES}")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Of a folder and those in it; links are not followed."""
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
    except (OSError, RuntimeError):  # RuntimeError: links that lead to each other, before Python 3.13
        raise FilesError(f"{name} is a link that leads nowhere: {os.readlink(link)}") from None
    if not target.is_relative_to(root):
        raise FilesError(
            f"{name} is a link that leads out of the bundle, to {target}: put the file itself into the bundle"
        )

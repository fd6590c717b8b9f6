"""Python source as characters: the standard library of the running interpreter, without its tests.

Each file belongs to one split as a whole, by the SHA-256 of its path in the library.
"""

from __future__ import annotations

import hashlib
import string
import sysconfig
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

UNKNOWN_ID, START_ID = 0, 1
CHARACTERS = ("<unk>", "<file>", "\n", " ", *string.digits, *string.ascii_letters, *string.punctuation)
"""The vocabulary: unknown characters, the beginning of a file, and printable ASCII."""

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
_IDS = {character: index for index, character in enumerate(CHARACTERS)}


def library() -> Path:
    """Returns the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def load(split: Split) -> list[str]:
    """Returns the files of a split, sorted by path, with tabs expanded to 8 spaces."""
    root = library()
    texts = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if not _LEFT_OUT.intersection(place.parts) and split_of(place.as_posix()) == split:
            texts.append(path.read_text(encoding="utf-8", errors="replace").expandtabs())
    return [text for text in texts if text.strip()]


def split_of(path: str) -> Split:
    """Returns the split of a file, by its path: a twentieth each for validation and test."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 20
    return "validation" if bucket == 0 else "test" if bucket == 1 else "train"


def encode(text: str) -> list[int]:
    """Returns the ids of a text's characters."""
    return [_IDS.get(character, UNKNOWN_ID) for character in text]

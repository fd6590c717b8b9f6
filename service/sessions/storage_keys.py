"""Reads the file with the keys that encrypt stored sessions.

Each line has one key: an id, a space, and 32 bytes in base64. The first key encrypts; all keys decrypt. Empty lines and
lines that begin with `#` are ignored. Error messages contain nothing of a line except a valid id.
"""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from carousel._extras import how_to_install
from service.sessions.stores.base import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
"""Too short for a key in base64, so that a key written in the place of an id is not shown in messages."""


def read_keys(path: Path) -> Mapping[str, AESGCM]:
    """Returns the keys of a file by id, in the file's order. Raises StoreError."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        command = how_to_install("encryption", distribution="carousel-serving")
        raise StoreError(f"storage_key_file needs {error.name}, which is not installed: {command}") from error
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StoreError(f"storage_key_file = {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise StoreError(f"storage_key_file = {path} is not UTF-8 text: each line must be `ID BASE64`") from None
    keys: dict[str, AESGCM] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"storage_key_file = {path}, line {number}"
        key_id, *rest = line.split()
        if len(rest) != 1 or not _ID.fullmatch(key_id):
            raise StoreError(
                f"{where} must be `ID BASE64`: an id of 1 to 32 letters, digits, `.`, `_` or `-`, a space, and 32 bytes"
                " in base64"
            )
        if key_id in keys:
            raise StoreError(f"{where} repeats the id {key_id!r}: give each key its own id")
        keys[key_id] = AESGCM(_key(rest[0], f"{where}: the key {key_id!r}"))
    if not keys:
        raise StoreError(f"storage_key_file = {path} has no key: write a line `ID BASE64` with 32 bytes in base64")
    return keys


def mode_open_to_others(path: Path) -> str | None:
    """Returns the mode of a file, in octal, when users outside its owner and group have access; else None. Raises
    OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{mode:04o}" if mode & stat.S_IRWXO else None


def _key(text: str, what: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise StoreError(f"{what} is not base64: write 32 bytes, as `openssl rand -base64 32` does") from None
    if len(key) != _KEY_BYTES:
        raise StoreError(f"{what} has {len(key)} bytes, it must have {_KEY_BYTES}")
    return key

"""The id of a call, by which its line in the access log, its status and its trace are found."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

KEY = "x-request-id"
"""Of metadata: what a caller sends, and what it gets back at the end of its call."""
MAX_LENGTH = 128
_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")


def request_id_of(metadata: Mapping[str, str]) -> str:
    """The id that the caller gave, if it is 1 to 128 printable ASCII characters without a space; else a new one, of 32
    hexadecimal digits. Thread-safe."""
    given = metadata.get(KEY)
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(16)

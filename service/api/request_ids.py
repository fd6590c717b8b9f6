"""The id of a call. Its line in the access log, its status and its trace have the id."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

KEY = "x-request-id"
"""The metadata key: a caller may send it, and gets it back at the end of its call."""
MAX_LENGTH = 128
_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")


def request_id_of(metadata: Mapping[str, str]) -> str:
    """Returns the id that the caller gave, if it has 1 to 128 printable ASCII characters and no space; else a new id of
    32 hexadecimal digits. Thread-safe."""
    given = metadata.get(KEY)
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(16)

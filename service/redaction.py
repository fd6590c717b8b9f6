"""Takes passwords out of texts that people read. Pure."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^\s\"']*@")
"""Of a URL: up to its last `@`, as passwords that are not escaped have `@` and `/` in them."""
_PARAMETER = re.compile(r"(?<=[?&])((?:password|secret|token|key|auth)=)[^\s&\"']*", re.IGNORECASE)
_HIDDEN = "***"


def without_passwords(text: str) -> str:
    """The text with `***` for the user and the password of each URL, and for parameters of URLs that name a secret."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_HIDDEN}", _USER.sub(f"{_HIDDEN}@", text))

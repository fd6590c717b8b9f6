"""Removes passwords from texts for people. Pure."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^\s\"']*@")
"""The user and password of a URL, up to its last `@`, because unescaped passwords can contain `@` and `/`."""
_PARAMETER = re.compile(r"(?<=[?&])((?:password|secret|token|key|auth)=)[^\s&\"']*", re.IGNORECASE)
_HIDDEN = "***"


def without_passwords(text: str) -> str:
    """Returns the text with `***` for the user and password of each URL, and for URL parameters that name a secret."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_HIDDEN}", _USER.sub(f"{_HIDDEN}@", text))

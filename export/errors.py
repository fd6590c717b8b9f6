"""What can go wrong in an export that somebody can act on."""

from __future__ import annotations

import re

from pydantic import ValidationError


class ExportError(Exception):
    """No bundle was written; the message says why, and what to do where something can be done."""


_OF_RUNTIME = (
    (re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "), ""),
    (re.compile(r"^Fatal error: "), ""),
    (re.compile(r"^\S+\.(?:h|cc|cpp):\d+ .*?\) (?:const )?(?=\S)"), ""),
    (
        re.compile(r"^Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: "),
        r"\1 \2: ",
    ),
    (re.compile(r"^(\w+ \S*: )\S+\.(?:h|cc|cpp):\d+ .*?\) (?:const )?(?=\S)"), r"\1"),
)
"""What ONNX Runtime says of itself around what it says of a file."""


def first_line(error: Exception) -> str:
    """What an error of another library says, its first line, without places in its own source."""
    line = str(error).strip().partition("\n")[0]
    for pattern, kept in _OF_RUNTIME:
        line = pattern.sub(kept, line)
    return line.rstrip(".: ")[:400] or type(error).__name__


def refused_fields(error: ValidationError) -> str:
    """What a manifest's fields are refused for, a few of them."""
    told = []
    for one in error.errors(include_url=False):
        field, given = ".".join(map(str, one["loc"])), one["input"]
        value = f"{field} = {given!r}: " if field and isinstance(given, str | int | float) else ""
        told.append(f"{value[:200]}{one['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return f"the manifest would be refused: {'; '.join(told[:3])}{more}"

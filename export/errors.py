"""What can go wrong in an export that somebody can act on."""

from __future__ import annotations

import re


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
    return line.rstrip(". ")[:400] or type(error).__name__

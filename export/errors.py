"""The exporter's error, and readable texts from errors of other libraries."""

from __future__ import annotations

import re

from pydantic import ValidationError


class ExportError(Exception):
    """The model, or one way to export it, was refused. The message says why and, where possible, what to do.

    No bundle was written if it leaves the exporter. Callers inside may catch it and try another way.
    """


class SignatureError(ExportError):
    """A graph has other inputs or outputs than the interface describes."""


class BatchError(ExportError):
    """A row changes when it runs with other rows."""


class SizeError(ExportError):
    """The bundle would be larger than allowed. Another way to export it would not help."""


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
"""Parts of ONNX Runtime's messages that name its own source, and their replacements."""


def first_line(error: Exception) -> str:
    """Returns the first line of another library's message, at most 400 characters, without places in its source."""
    line = str(error).strip().partition("\n")[0]
    for pattern, kept in _OF_RUNTIME:
        line = pattern.sub(kept, line)
    return line.rstrip(".: ")[:400] or type(error).__name__


def refused_fields(error: ValidationError) -> str:
    """Returns a message with at most three fields that the manifest refuses, and why."""
    problems = []
    for one in error.errors(include_url=False):
        field, given = ".".join(map(str, one["loc"])), one["input"]
        value = f"{field} = {given!r}: " if field and isinstance(given, str | int | float) else ""
        problems.append(f"{value[:200]}{one['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"the manifest is invalid: {'; '.join(problems[:3])}{more}"

"""Asks Prometheus for the values that a panel shows."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_VARIABLE = re.compile(r"\$(\w+)")


class QueryError(Exception):
    """Prometheus refused a query; the message contains the query and the reason."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel. labels: those of the query's result; points: (Unix seconds, value)."""

    labels: Mapping[str, str]
    points: list[tuple[float, float]]


def expand(expr: str, variables: Mapping[str, str]) -> str:
    """Returns the query with Grafana's variables filled in. Raises KeyError for a variable without a value."""
    return _VARIABLE.sub(lambda found: variables[found[1]], expr)


def legend(template: str, labels: Mapping[str, str]) -> str:
    """Returns a legend with its labels filled in. Raises KeyError for a label that the series does not have."""
    return re.sub(r"{{(\w+)}}", lambda found: labels[found[1]], template)


def query_range(prometheus: str, expr: str, start: float, end: float, step: float) -> list[Series]:
    """Returns a query's values, every `step` seconds.

    prometheus: its URL; start, end: Unix seconds. Raises QueryError when Prometheus refuses the query.
    """
    asked = urllib.parse.urlencode({"query": expr, "start": start, "end": end, "step": step})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{asked}", timeout=30) as response:  # noqa: S310  # our own
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise QueryError(f"{expr}: {error.read().decode()}") from error
    return [
        Series(one["metric"], [(float(when), float(value)) for when, value in one["values"]])
        for one in answer["data"]["result"]
    ]

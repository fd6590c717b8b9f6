"""Messages about a request are short and quick to make, whatever the request contains."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import service
from service.errors import quoted, shortened

MESSAGE_LENGTH = 300
WAY_OUT = {"_told", "look_at", "_unescaped"}
"""Functions whose messages are about settings and files, never about a request."""


@pytest.mark.parametrize("value", ["", "g2p-en", "x" * 140, b"raw", 7, ["a", 1], None])
def test_what_is_short_is_quoted_as_it_is(value: object) -> None:
    assert quoted(value) == repr(value)


def test_what_is_long_is_cut_and_says_so() -> None:
    assert quoted("y" * 5000) == repr("y" * 140 + "...")
    assert quoted(list(range(1000))) == "[0, 1, 2, 3, 4, 5, 6, 7, ... 1000 in all]"
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abc..."


@given(st.one_of(st.text(), st.binary(), st.integers()), st.integers(1, 2000))
def test_quoted_values_are_short(value: str | bytes | int, times: int) -> None:
    """An escape can turn one character into ten."""
    assert len(quoted(value if isinstance(value, int) else value * times)) <= MESSAGE_LENGTH
    assert len(quoted([value] * times)) <= 9 * MESSAGE_LENGTH


@pytest.mark.parametrize("folder", ["api", "repository"])
def test_api_and_repository_quote_values_with_quoted_only(folder: str) -> None:
    """`!r` shows a value of a request whole, whatever its size."""
    found = []
    for source in sorted((Path(service.__file__).parent / folder).glob("*.py")):
        if source.name in {"stream.py", "arrivals.py", "sessions.py", "step.py"}:
            continue  # ids there are of sessions that exist
        for function in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name not in WAY_OUT:
                whole = [
                    n for n in ast.walk(function) if isinstance(n, ast.FormattedValue) and n.conversion == ord("r")
                ]
                found += [f"{source.name}:{one.lineno}" for one in whole]
    assert found == []

"""Texts that people read contain no password."""

from __future__ import annotations

import pytest

from service.redaction import without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hush@cache:6379/0", "redis://***@cache:6379/0"),
        ("cannot reach 'rediss://user:hush@cache'", "cannot reach 'rediss://***@cache'"),
        ("redis://user:hu@s/h?@cache and redis://:hush@other", "redis://***@cache and redis://***@other"),
        ("redis://cache?db=1&password=hush&timeout=2", "redis://cache?db=1&password=***&timeout=2"),
        ('{"url": "redis://:hush@cache", "at": "a@b"}', '{"url": "redis://***@cache", "at": "a@b"}'),
        ("http://127.0.0.1:9100/metrics of somebody@example", "http://127.0.0.1:9100/metrics of somebody@example"),
        ("nothing secret", "nothing secret"),
    ],
)
def test_passwords_of_urls_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert without_passwords(text) == shown

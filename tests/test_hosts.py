"""A host or URL is recognised in each of its spellings."""

from __future__ import annotations

import pytest

from service.hosts import in_url, is_loopback, is_redis_url


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "::1", "[::1]", "[0:0::1]"])
def test_every_spelling_of_this_machine_is_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost..", "[localhost", "10.0.0.1", "::2", "", "localhost.example"])
def test_others_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_an_address_of_ipv6_is_in_brackets_in_a_url() -> None:
    assert [in_url(host) for host in ("fd00::5", "[fd00::5]", "10.0.0.5", "a.example")] == [
        "[fd00::5]",
        "[fd00::5]",
        "10.0.0.5",
        "a.example",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://cache",
        "rediss://user:p%23ss@cache.example:6380/1?health_check_interval=2",
        "redis://:pass@[::1]:6379",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_a_url_of_redis_is_known(url: str) -> None:
    assert is_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "cache:6379", "http://cache", "redis://", "unix://", "redis://cache:0"),
        "redis://:p#ss@cache",
        "redis://:p/s@c",
    ],
)
def test_an_invalid_redis_url_is_refused(url: str) -> None:
    """A password with `#` or `/` would end the host too early."""
    assert not is_redis_url(url)

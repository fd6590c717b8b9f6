"""A host is one, however it is written."""

from __future__ import annotations

import pytest

from service.hosts import in_url, is_loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "::1", "[::1]", "[0:0::1]"])
def test_this_machine_has_many_spellings(host: str) -> None:
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

"""Request headers: which reach the handler, which are too large, and which are invalid."""

from __future__ import annotations

from typing import Any

import pytest

from examples.local_service import LocalService
from tests.wire.conformance.calls import client, framed, path, read
from tests.wire.conformance.http2 import Answer, Connection, call_headers
from tests.wire.conformance.servicer import struct

LIMIT = 16 * 1024
ENVOYS_OWN = "x-envoy-external-address"
DESCRIBE = framed(do="describe")


def metadata_of(answer: Answer) -> list[tuple[str, str]]:
    """Returns the metadata that the handler saw, without what Envoy adds. Binary values are in hexadecimal."""
    assert answer.status == 0, answer
    return [(name, value) for name, value in read(answer.messages[0])["metadata"] if name != ENVOYS_OWN]


def described(one: Connection, *headers: tuple[str, str]) -> list[tuple[str, str]]:
    """Returns the metadata that a handler sees of a call's headers."""
    return metadata_of(one.ask(call_headers(path("Unary"), *headers), DESCRIBE))


def test_metadata_reaches_the_handler_in_order_with_its_duplicates(service: LocalService) -> None:
    sent = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "3"), ("empty", ""), ("a.b_c-1", " ~!")]
    with Connection(service.target) as one:
        seen = described(one, *sent)
    assert [(name, value.strip()) for name, value in seen if name == "a"] == [("a", "1"), ("a", "3"), ("a", "3")]
    assert sorted((name, value.strip()) for name, value in seen) == sorted(
        (name, value.strip()) for name, value in sent
    )


def test_bytes_may_be_padded_or_not(service: LocalService) -> None:
    with Connection(service.target) as one:
        assert described(one, ("k-bin", "AP8K"), ("k-bin", "/w"), ("k-bin", "/w=="), ("k-bin", "")) == [
            ("k-bin", "00ff0a"),
            ("k-bin", "ff"),
            ("k-bin", "ff"),
            ("k-bin", ""),
        ]


def test_bytes_of_several_entries_may_come_in_one(envoy_service: LocalService) -> None:
    """The protocol allows it; grpcio refuses them."""
    with Connection(envoy_service.target) as one:
        assert described(one, ("k-bin", "AP8K,/w==, AA")) == [("k-bin", "00ff0a"), ("k-bin", "ff"), ("k-bin", "00")]


async def test_grpcio_and_the_handler_exchange_metadata(service: LocalService) -> None:
    sent: Any = (("k", "v"), ("k", "w"), ("k-bin", b"\0\xff"), ("other-bin", b""))
    async with client(service.target) as one:
        seen = read(await one.unary(struct(do="describe"), metadata=sent, timeout=9))
    names = [name for name, _ in sent]
    assert [tuple(entry) for entry in seen["metadata"] if entry[0] in names] == [
        ("k", "v"),
        ("k", "w"),
        ("k-bin", "00ff"),
        ("other-bin", ""),
    ]
    assert seen["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < seen["remaining_s"] < 9.1


@pytest.mark.parametrize("how", ["one", "many"])
def test_too_much_metadata_is_refused_and_the_connection_goes_on(service: LocalService, how: str) -> None:
    """HTTP/2 counts 32 bytes for each entry besides its name and value."""

    def entries(size: int) -> list[tuple[str, str]]:
        if how == "one":
            return [("k", "v" * (size - 33))]
        return [(f"k{number:04}", "") for number in range(size // 37)]

    with Connection(service.target) as one:
        assert len(described(one, *entries(LIMIT - 1024))) > 0
        for size in (LIMIT + 100, LIMIT + 6000, 4 * LIMIT, 20 * LIMIT):
            answer = one.ask(call_headers(path("Unary"), *entries(size)), DESCRIBE)
            assert answer.status == 8 or answer.reset is not None or one.is_closed
            if one.is_closed:  # grpcio closes the connection if the size is far over the limit
                break
    with Connection(service.target) as one:
        assert described(one) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upper", "v"),
        ("a b", "v"),
        ("a:b", "v"),
        ("é", "v"),
        ("", "v"),
        (":unknown", "v"),
        ("te", "gzip"),
    ],
)
def test_a_name_that_http_2_does_not_allow_ends_its_call_alone(service: LocalService, name: str, value: str) -> None:
    with Connection(service.target) as one:
        other = one.start(call_headers(path("Stream")))
        one.data(other, framed(number=1))
        one.wait_for_data(other, 1)
        answer = one.ask(call_headers(path("Unary"), (name, value)), DESCRIBE)
        assert answer.reset is not None or answer.status == 13
        one.data(other, framed(number=2), is_last=True)
        answer = one.answer(other)
        assert ([read(message)["number"] for message in answer.messages], answer.status) == ([1, 2], 0)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\x7f"])
def test_a_value_that_http_2_does_not_allow_reaches_no_handler(envoy_service: LocalService, value: str) -> None:
    """grpcio passes on any bytes."""
    with Connection(envoy_service.target) as one:
        assert one.ask(call_headers(path("Unary"), ("k", value)), DESCRIBE).reset == 1
        assert described(one, ("k", "fine")) == [("k", "fine")]


@pytest.mark.parametrize(
    "header", [("connection", "close"), ("transfer-encoding", "chunked"), ("content-length", "-1")]
)
def test_headers_of_http_1_are_refused(envoy_service: LocalService, header: tuple[str, str]) -> None:
    """grpcio treats them as metadata."""
    with Connection(envoy_service.target) as one:
        assert one.ask(call_headers(path("Unary"), header), DESCRIBE).reset == 1
        assert described(one) == []


@pytest.mark.parametrize("missing", ["method", "scheme", "path", "authority"])
def test_a_call_without_a_required_http_2_header_is_refused(service: LocalService, missing: str) -> None:
    with Connection(service.target) as one:
        assert one.ask(call_headers(path("Unary"), **{missing: None}), DESCRIBE).reset in (1, 2)
        assert described(one) == []


def test_a_call_without_te_is_refused(service: LocalService) -> None:
    """A proxy that drops `te` may also drop trailers, and with them the status."""
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary"), te=None), DESCRIBE)
        assert answer.reset == 2 or answer.status == 13


def test_a_client_cannot_forge_its_peer(envoy_service: LocalService) -> None:
    """What the client says of a proxy in front of it is only metadata. The peer is whoever has connected."""
    forged = [
        ("x-forwarded-client-cert", 'Subject="CN=admin"'),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-envoy-internal", "true"),
    ]
    with Connection(envoy_service.target) as one:
        answer = one.ask(call_headers(path("Unary"), *forged), DESCRIBE)
        assert dict(metadata_of(answer)) == {"x-forwarded-for": "10.0.0.1"}
        assert read(answer.messages[0])["peer"].startswith("ipv4:127.0.0.1:")

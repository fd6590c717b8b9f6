"""HTTP headers become metadata and back."""

from __future__ import annotations

import grpc
import pytest

from service.wire.envoy.headers import checked, encoded, metadata_of, seconds_of, size_of, status_headers


def test_metadata_excludes_headers_of_the_transport() -> None:
    headers = [(b"host", b"h"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"authorization", b"Bearer x")]
    assert metadata_of(headers) == (("authorization", "Bearer x"),)


def test_bytes_come_in_base_64_with_and_without_padding_and_several_in_one() -> None:
    assert metadata_of([(b"a-bin", b"AAE=,/w"), (b"a-bin", b"no!")]) == (("a-bin", b"\0\1"), ("a-bin", b"\xff"))
    assert metadata_of(encoded([("a-bin", b"\0\1\xff\xfe")])) == (("a-bin", b"\0\1\xff\xfe"),)


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("1H", 3600.0), ("2M", 120.0), ("3S", 3.0), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9)]
)
def test_timeouts_have_their_unit(timeout: str, seconds: float) -> None:
    assert seconds_of(timeout) == pytest.approx(seconds)


@pytest.mark.parametrize("timeout", ["", "1", "S", "123456789S", "-1S", "1.5S", "1s"])
def test_an_invalid_timeout_gives_none(timeout: str) -> None:
    assert seconds_of(timeout) is None


def test_a_status_has_its_number_and_its_words_percent_encoded() -> None:
    headers = status_headers(grpc.StatusCode.NOT_FOUND, "10% of «x»\n", [("k-bin", b"\0")])
    assert headers == [(b"grpc-status", b"5"), (b"grpc-message", b"10%25 of %C2%ABx%C2%BB%0A"), (b"k-bin", b"AA")]
    assert status_headers(grpc.StatusCode.OK, "", ()) == [(b"grpc-status", b"0")]


def test_headers_are_counted_as_http_2_does() -> None:
    assert size_of([(b"ab", b"cde"), (b"", b"")]) == 5 + 64


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Upper", "v", "'Upper' is not a valid metadata name"),
        ("a b", "v", "'a b' is not a valid metadata name"),
        ("", "v", "'' is not a valid metadata name"),
        (":path", "v", "':path' is not a valid metadata name"),
        ("grpc-status", "0", "'grpc-status' is not a valid metadata name"),
        ("content-type", "v", "'content-type' is not a valid metadata name"),
        ("a", "one\ntwo", r"'a' is 'one\\ntwo'"),
        ("a", "é", "'a' is 'é'"),
    ],
)
def test_metadata_that_cannot_travel_is_refused(name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked([("fine", "v"), (name, value)])


def test_metadata_that_can_travel_is_left_as_it_is() -> None:
    metadata: list[tuple[str, str | bytes]] = [
        ("a.b_c-1", " ~"),
        ("k-bin", b"\n\xff"),
        ("grpc-status-details-bin", b""),
        ("a.b_c-1", ""),
    ]
    assert checked(iter(metadata)) == metadata

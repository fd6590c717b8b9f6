"""`Frames` cuts incoming bytes into messages."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire.envoy.frames import FrameError, Frames, framed


def all_of(frames: Frames) -> list[bytes]:
    """Returns the messages that are complete."""
    found = []
    while (message := frames.next()) is not None:
        found.append(message)
    return found


def compressed(data: bytes) -> bytes:
    """Returns a frame that is marked as compressed."""
    return b"\1" + len(data).to_bytes(4, "big") + data


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 60), max_size=8))
def test_messages_come_out_as_they_went_in_whatever_the_chunks(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framed(message) for message in messages)
    frames, found = Frames("", 100), []
    edges = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    for begin, end in pairwise(edges):
        frames.add(stream[begin:end])
        found += all_of(frames)
    assert found == messages
    assert frames.is_empty


def test_an_incomplete_message_is_kept() -> None:
    frames = Frames("", 100)
    frames.add(framed(b"whole") + framed(b"cut off")[:-1])
    assert all_of(frames) == [b"whole"]
    assert not frames.is_empty


def test_a_too_large_message_is_refused_before_it_is_complete() -> None:
    frames = Frames("", 10)
    frames.add(b"\0" + (11).to_bytes(4, "big"))
    with pytest.raises(FrameError, match=r"larger than max \(11 vs\. 10\)") as raised:
        frames.next()
    assert raised.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"model":"g2p-en"}'])
def test_json_without_a_frame_is_refused_for_its_first_byte_and_not_for_its_length(body: bytes) -> None:
    frames = Frames("", 10)
    frames.add(body)
    with pytest.raises(FrameError) as raised:
        frames.next()
    expected = "the first byte of a frame is 123: expected 0 or 1, then 4 bytes of length, then a message"
    assert (raised.value.code, str(raised.value)) == ("INTERNAL", expected)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages_are_decompressed(encoding: str, compress) -> None:  # type: ignore[no-untyped-def]
    frames = Frames(encoding, 1000)
    frames.add(compressed(compress(b"x" * 1000)) + framed(b"plain") + compressed(b""))
    assert all_of(frames) == [b"x" * 1000, b"plain", b""]


def test_a_message_that_grows_over_the_limit_is_refused() -> None:
    frames = Frames("gzip", 1000)
    frames.add(compressed(gzip.compress(b"x" * 1001)))
    with pytest.raises(FrameError, match="more than 1000 bytes") as raised:
        frames.next()
    assert raised.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("encoding", "data", "code", "words"),
    [
        ("br", compressed(b"x"), "UNIMPLEMENTED", "grpc-encoding is 'br'"),
        ("", compressed(b"x"), "INTERNAL", "grpc-encoding is missing"),
        ("gzip", compressed(b"no gzip"), "INTERNAL", "a compressed message is not valid gzip"),
        ("gzip", compressed(gzip.compress(b"cut off", mtime=0)[:-9]), "INTERNAL", "a compressed message is incomplete"),
        ("gzip", compressed(gzip.compress(b"x", mtime=0) + b"more"), "INTERNAL", "4 bytes after its gzip"),
        ("", b"\2\0\0\0\0", "INTERNAL", "is 2: expected 0 or 1"),
    ],
)
def test_what_is_no_message_is_refused_in_words(encoding: str, data: bytes, code: str, words: str) -> None:
    frames = Frames(encoding, 100)
    frames.add(data)
    with pytest.raises(FrameError, match=words) as raised:
        frames.next()
    assert raised.value.code == code

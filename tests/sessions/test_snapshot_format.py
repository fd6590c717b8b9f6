"""Snapshots of earlier versions stay readable for ever; invalid or changed bytes are refused."""

from __future__ import annotations

import hmac
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from service.engine.beam import Hypothesis
from service.engine.decoding import Beam, Decoding, FinishReason, Sampling
from service.engine.jobs import Item, OutputKind, OutputSpec
from service.engine.last_tokens import LastTokens
from service.engine.results import LaneState, Searched, StepOutput
from service.errors import SnapshotCorruptError, SnapshotError, SnapshotFormatError, SnapshotKeyError
from service.sessions.image import FedBefore, GeneratedBefore, Image
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy
from service.sessions.snapshot import Codec

FIXTURES = Path(__file__).parent / "fixtures"
KEY = b"the key of the fixtures"


def lane(position: int, *, pending: list[Item], num_produced: int = 0) -> LaneState:
    values = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    return LaneState(
        position,
        pending,
        None if pending else np.array([0.5, -1.0, np.inf], np.float32),
        [values, values + 1],
        [np.full((4, 2), position, np.float32)],
        num_produced,
        np.array([3, 5], np.int64) if num_produced else None,
    )


def images() -> dict[str, Image]:
    """Returns one image for each kind of last request."""
    policy = SessionPolicy(Durability.STRICT, OnDisconnect.KEEP, 12.5, is_unattended=True)
    outputs = [StepOutput(7, [4, 2], [-0.5, -1.5]), StepOutput(8, [], None, np.array([1.0, 2.0, 3.0], np.float32))]
    fed = FedBefore(6, [1, 2], OutputSpec(OutputKind.TOP_K, 2, every_position=True), outputs)
    sampling = Sampling(0.7, 5, 0.9, 2**64 - 1)
    decoding = Decoding(
        30, sampling, log_probabilities=True, repetition_penalty=1.25, min_tokens=3, stop_ids=frozenset({9, 4})
    )
    going_on = GeneratedBefore(5, decoding, 1, [3, 5], [-0.25, -0.5], None)
    beam = Decoding(9, beam=Beam(4, 0.5, 2))
    hypotheses = [Hypothesis([1, 2], 0, 0.5, -1.0, [-0.5, -0.25, -0.25], FinishReason.EOS)]
    searched = GeneratedBefore(6, beam, 0, [1, 2], None, None, Searched(8, hypotheses))
    worded = GeneratedBefore(2, decoding, 3, [3, 5], [-0.25, -0.5], None, before=LastTokens(5, [9, 8, 7]))
    before = LastTokens(6, [4, 4])
    searched_words = GeneratedBefore(6, beam, 0, [1, 2], None, None, Searched(8, hypotheses, before), before)
    common = ("s-1", "g2p-en", 3, "int8", "ab" * 32, 1_700_000_000.5, ["hidden", "cell"])
    return {
        "fed": Image(*common, lane(8, pending=[]), policy, fed, {3: lane(3, pending=[1]), 6: lane(6, pending=[])}),
        "generating": Image(*common, lane(8, pending=[5], num_produced=3), policy, going_on),
        "searched": Image(*common, lane(8, pending=[]), SessionPolicy(), searched),
        "worded": Image(*common, lane(7, pending=[5], num_produced=5), policy, worded),
        "foundwords": Image(*common, lane(8, pending=[]), SessionPolicy(), searched_words),
    }


def same(one: object, other: object) -> bool:
    """Returns whether two values are equal, and their arrays bit-identical."""
    return repr(one) == repr(other) and _bits(one) == _bits(other)


def _bits(value: object) -> list[bytes]:
    if isinstance(value, np.ndarray):
        return [value.tobytes()]
    if isinstance(value, Image):
        return [bits for part in (value.lane, value.last, *value.marks.values()) for bits in _bits(part)]
    if isinstance(value, FedBefore):
        return _bits(value.answer)
    if isinstance(value, list | tuple):
        return [bits for part in value for bits in _bits(part)]
    return []


@pytest.mark.parametrize("name", images())
@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_image_comes_back_as_it_was(name: str, is_compressed: bool) -> None:
    codec, image = Codec(KEY, is_compressed=is_compressed), images()[name]
    decoded = Codec(KEY).decode(codec.encode(image))
    assert same(decoded, image)
    assert decoded.lane.states[0].dtype == np.float32


def test_an_answer_with_a_trace_comes_back_as_it_was() -> None:
    gates, attention = np.array([0.25, -np.inf], np.float32), np.array([], np.float32)
    output = StepOutput(8, [4], [-0.5], None, {"gates": gates, "attention": attention}, num_limited=2)
    fed = FedBefore(7, [1], OutputSpec(OutputKind.EMITTED, has_trace=True), [output])
    decoded = Codec(KEY).decode(Codec(KEY).encode(replace(images()["fed"], last=fed))).last
    assert isinstance(decoded, FedBefore)
    assert repr(decoded) == repr(fed)
    trace = decoded.answer[0].trace
    assert trace is not None
    assert {name: row.tobytes() for name, row in trace.items()} == {"gates": gates.tobytes(), "attention": b""}


def test_a_number_of_numpy_is_never_written_as_bytes() -> None:
    output = StepOutput(8, [np.int64(4)])  # type: ignore[list-item]
    fed = FedBefore(7, [1], OutputSpec(), [output])
    with pytest.raises(TypeError, match="int64"):
        Codec(KEY).encode(replace(images()["fed"], last=fed))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.snapshot")), ids=lambda path: path.stem)
def test_a_snapshot_of_an_earlier_version_is_read_for_ever(path: Path) -> None:
    """The files are never regenerated. A later format gets its own files."""
    assert same(Codec(KEY).decode(path.read_bytes()), images()[path.stem.partition("-")[0]])


def test_there_is_a_fixture_of_each_kind() -> None:
    """The fixture of a new kind is `Codec(KEY).encode(images()[name])`, written once."""
    assert {path.stem for path in FIXTURES.glob("*-1.snapshot")} == {f"{name}-1" for name in images()}


def unpacked(data: bytes) -> tuple[Any, bytes]:
    """Returns the header of a snapshot as plain values, and its body without compression."""
    end = 20 + struct.unpack_from("<I", data, 16)[0]
    body = data[end:-36]
    is_compressed = data[6] == 1
    return msgspec.msgpack.decode(data[20:end]), zstandard.decompress(body) if is_compressed else body


def sealed(signed: bytes, tag: bytes | None = None) -> bytes:
    """Returns a snapshot with a right checksum and, if no tag is given, a right tag."""
    tagged = signed + (hmac.digest(KEY, signed, "sha256") if tag is None else tag)
    return tagged + struct.pack("<I", zlib.crc32(tagged))


def extends(new: Any, old: Any) -> bool:
    """Returns whether a value of a header has all that an older one has, in the same place, and at most more fields."""
    if isinstance(old, dict):
        return list(new)[: len(old)] == list(old) and all(extends(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return len(new) >= len(old) and all(extends(*pair) for pair in zip(new, old, strict=False))
    return type(new) is type(old) and bool(new == old)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.snapshot")), ids=lambda path: path.stem)
def test_this_version_writes_what_earlier_versions_wrote_and_at_most_more_fields(path: Path) -> None:
    """Earlier versions skip fields that they do not know, so they read what this version writes."""
    old = path.read_bytes()
    new = Codec(KEY).encode(Codec(KEY).decode(old))
    (new_header, new_body), (old_header, old_body) = unpacked(new), unpacked(old)
    assert extends(new_header, old_header)
    assert new_body == old_body


@pytest.mark.parametrize("name", ["foundwords-1", "worded-1"])
def test_a_snapshot_with_all_the_fields_of_this_version_is_written_to_the_byte(name: str) -> None:
    """When a later version adds fields, its own fixture takes the place of these."""
    old = (FIXTURES / f"{name}.snapshot").read_bytes()
    assert Codec(KEY).encode(Codec(KEY).decode(old)) == old


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda header: header.update(durability=9), "Invalid enum value 9 - at `$.durability`"),
        (lambda header: header["lane"].pop("position"), "missing required field `position` - at `$.lane`"),
        (lambda header: header["feed"].update(kind="much"), "Invalid enum value 'much' - at `$.feed.kind`"),
        (
            lambda header: header["feed"]["answer"][1].__setitem__(3, b"123"),
            "buffer size must be a multiple of element size - at `$.feed.answer[1][3]`",
        ),
        (lambda header: header["lane"]["tensors"][0].__setitem__(0, "float99"), "data type 'float99' not understood"),
        (lambda header: header["marks"].pop(), "bytes of tensors, expected"),
    ],
)
def test_a_signed_header_with_a_fault_is_refused_and_the_fault_named(
    damage: Callable[[Any], object], message: str
) -> None:
    data = Codec(KEY).encode(images()["fed"])
    header, body = unpacked(data)
    damage(header)
    packed = msgspec.msgpack.encode(header)
    with pytest.raises(SnapshotCorruptError) as caught:
        Codec(KEY).decode(sealed(data[:16] + struct.pack("<I", len(packed)) + packed + body))
    assert message in str(caught.value)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_is_noticed_wherever_it_is(at: int, bit: int) -> None:
    data = bytearray(Codec(KEY).encode(images()["fed"]))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(SnapshotCorruptError if at % len(data) >= 4 else SnapshotError):
        Codec(KEY).decode(bytes(data))


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    for prefix in (b"", b"CRSL"):
        with pytest.raises(SnapshotError):
            Codec(KEY).decode(prefix + data)


def test_another_key_a_forged_tag_and_a_later_format_each_have_their_error() -> None:
    data = Codec(KEY).encode(images()["fed"])
    with pytest.raises(SnapshotKeyError, match="signed with a different key"):
        Codec(b"another key of the same").decode(data)

    signed = data[:-36]
    assert sealed(signed, data[-36:-4]) == data
    with pytest.raises(SnapshotCorruptError, match="changed after it was signed"):
        Codec(KEY).decode(sealed(signed[:-1] + b"?", data[-36:-4]))
    later = signed[:4] + struct.pack("<H", 2) + signed[6:]
    with pytest.raises(SnapshotFormatError, match="format 2, but this server reads format 1"):
        Codec(KEY).decode(sealed(later))

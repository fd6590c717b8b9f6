"""Sessions as bytes: the format of snapshots and checkpoints, which never changes.

    magic     4  b"CRSL"
    format    2  1
    flags     2  1: the body is compressed (zstd)
    key       8  identifies the key that signed it
    size      4  of the header
    header       MessagePack: see `snapshot_format`
    body         the tensors that the header describes, one after another, row-major, little-endian
    tag      32  HMAC-SHA256 of all bytes before
    checksum  4  CRC-32 of all bytes before; the last field in every format. Distinguishes accidental changes from
                 data signed with another key

Numbers are little-endian and unsigned. Later formats have other format numbers. Fields with defaults may be added to
the header of this format.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib

import msgspec
import zstandard

from service.errors import SnapshotCorruptError, SnapshotError, SnapshotFormatError, SnapshotKeyError
from service.sessions.image import Image
from service.sessions.snapshot_format import decode_header, encode_header
from service.sessions.snapshot_header import arrays_of, header_of, image_of

FORMAT = 1
_MAGIC = b"CRSL"
_PREFIX = struct.Struct("<4sHH8sI")
_CHECKSUM = struct.Struct("<I")
_TAG_SIZE = 32
_COMPRESSED = 1
_MAX_BODY = 1 << 32


class Codec:
    """Writes and reads snapshots. key: signs them. is_compressed: whether it compresses those that it writes. Threads
    may share it."""

    def __init__(self, key: bytes, *, is_compressed: bool = False) -> None:
        self._key = key
        self._key_id = hashlib.sha256(b"carousel snapshot key " + key).digest()[:8]
        self._is_compressed = is_compressed

    def encode(self, image: Image) -> bytes:
        """Returns an image as bytes."""
        header = encode_header(header_of(image))
        body = b"".join(array.tobytes() for array in arrays_of(image))
        if self._is_compressed:
            body = zstandard.ZstdCompressor().compress(body)
        flags = _COMPRESSED if self._is_compressed else 0
        signed = _PREFIX.pack(_MAGIC, FORMAT, flags, self._key_id, len(header)) + header + body
        signed += hmac.digest(self._key, signed, "sha256")
        return signed + _CHECKSUM.pack(zlib.crc32(signed))

    def decode(self, data: bytes, *, field: str = "snapshot") -> Image:
        """Returns the image in bytes. field: that of the request, for errors. Raises SnapshotError,
        SnapshotCorruptError, SnapshotFormatError and SnapshotKeyError."""
        if not data.startswith(_MAGIC):
            raise SnapshotError(
                f"snapshot of {len(data)} bytes is not a Carousel snapshot (bad magic bytes)", field=field
            )
        if len(data) < _PREFIX.size + _TAG_SIZE + _CHECKSUM.size:
            raise SnapshotCorruptError(f"snapshot of {len(data)} bytes is cut off", field=field)
        signed, tag = data[: -_TAG_SIZE - _CHECKSUM.size], data[-_TAG_SIZE - _CHECKSUM.size : -_CHECKSUM.size]
        if _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0] != zlib.crc32(data[: -_CHECKSUM.size]):
            raise SnapshotCorruptError(
                f"snapshot of {len(data)} bytes is damaged: its checksum does not match", field=field
            )
        _, number, flags, key_id, size = _PREFIX.unpack_from(data)
        if number != FORMAT:
            raise SnapshotFormatError(
                f"snapshot has format {number}, but this server reads format {FORMAT}", field=field, format=number
            )
        if key_id != self._key_id:
            raise SnapshotKeyError(
                "snapshot was signed with a different key than this server's: servers that exchange snapshots need"
                " the same snapshot_key_file",
                field=field,
            )
        if not hmac.compare_digest(tag, hmac.digest(self._key, signed, "sha256")):
            raise SnapshotCorruptError("snapshot was changed after it was signed", field=field)
        body = signed[_PREFIX.size + size :]
        try:
            header = decode_header(signed[_PREFIX.size : _PREFIX.size + size])
            if flags & _COMPRESSED:
                body = zstandard.ZstdDecompressor().decompress(body, max_output_size=_MAX_BODY)
            return image_of(header, body)
        except (
            msgspec.MsgspecError,
            zstandard.ZstdError,
            ValueError,
            TypeError,
            LookupError,
        ) as error:  # signed: a bug
            raise SnapshotCorruptError(f"snapshot cannot be read: {error}", field=field) from error

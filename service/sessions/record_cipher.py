"""Encryption of the session payloads in a store, with AES-256-GCM. A snapshot in a record (see `snapshot`) becomes:

    magic     4  b"CRSE"
    format    2  1
    size      1  of the key's id
    key id       ASCII: the key that encrypted it
    nonce    12  random
    snapshot     encrypted
    tag      16  of the encrypted snapshot, all bytes before the nonce, and the record's id in UTF-8: no record can
                 take the place of another
    checksum  4  CRC-32 of all bytes before: distinguishes accidental changes from data encrypted with another key

Numbers are little-endian and unsigned.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotKeyError
from service.sessions.session import name_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = 1
_MAGIC = b"CRSE"
_PREFIX = struct.Struct("<4sHB")
_CHECKSUM = struct.Struct("<I")
_NONCE_SIZE = 12
_TAG_SIZE = 16


class RecordCipher:
    """Encrypts payloads of records with the first key, and decrypts with any key. Without keys it does not encrypt.
    keys: by id. Threads may share it."""

    def __init__(self, keys: Mapping[str, AESGCM] | None = None) -> None:
        self._keys = dict(keys or {})
        self._first = next(iter(self._keys), None)

    def encrypt(self, record_id: str, payload: bytes) -> bytes:
        """Returns the payload of a record in the form for the store."""
        if self._first is None:
            return payload
        key_id = self._first.encode()
        head = _PREFIX.pack(_MAGIC, FORMAT, len(key_id)) + key_id
        nonce = secrets.token_bytes(_NONCE_SIZE)
        data = head + nonce + self._keys[self._first].encrypt(nonce, payload, head + record_id.encode())
        return data + _CHECKSUM.pack(zlib.crc32(data))

    def decrypt(self, record_id: str, data: bytes) -> bytes:
        """Returns the payload of a stored record. A payload that is not encrypted is returned unchanged.

        Raises SnapshotKeyError when the key is missing or is not the one that encrypted the record;
        SnapshotFormatError; and SnapshotCorruptError for data that changed by accident.
        """
        if not data.startswith(_MAGIC):
            return data
        name = name_of(record_id)
        body, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        if len(data) < _PREFIX.size + _CHECKSUM.size or checksum != _CHECKSUM.pack(zlib.crc32(body)):
            raise SnapshotCorruptError(
                f"the encrypted record of session {name!r} is damaged: its checksum does not match",
                session_id=name,
            )
        _, number, size = _PREFIX.unpack_from(body)
        if number != FORMAT:
            raise SnapshotFormatError(
                f"the record of session {name!r} is encrypted in format {number}, but this server reads format"
                f" {FORMAT}",
                session_id=name,
                format=number,
            )
        nonce_at = _PREFIX.size + size
        key_id = body[_PREFIX.size : nonce_at].decode("ascii", "replace")
        key = self._keys.get(key_id)
        if key is None:
            raise SnapshotKeyError(
                f"the record of session {name!r} is encrypted with the key {key_id!r}, which this server does not have:"
                " add that key to storage_key_file",
                session_id=name,
            )
        nonce, encrypted = body[nonce_at : nonce_at + _NONCE_SIZE], body[nonce_at + _NONCE_SIZE :]
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # an optional extra, installed if there are keys

        try:
            if len(encrypted) < _TAG_SIZE:
                raise InvalidTag
            return key.decrypt(nonce, encrypted, body[:nonce_at] + record_id.encode())
        except InvalidTag:
            raise SnapshotKeyError(
                f"the record of session {name!r} cannot be decrypted with the key {key_id!r}: storage_key_file has a"
                " different key with that id, or the record belongs to another session",
                session_id=name,
            ) from None

"""Encrypted records: which are read, which are refused and with which message, and that no key is shown."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from service.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotKeyError
from service.sessions.record_cipher import RecordCipher
from service.sessions.storage_keys import read_keys
from service.sessions.stores.base import StoreError

OLD, NEW = (base64.b64encode(bytes([one]) * 32).decode() for one in (1, 2))
PAYLOAD = b"CRSL and what a session has read"


def key_file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def cipher(folder: Path, *lines: str) -> RecordCipher:
    return RecordCipher(read_keys(key_file(folder, *lines)))


def test_a_record_is_decrypted_as_it_was_and_is_never_the_same_bytes_twice(tmp_path: Path) -> None:
    one = cipher(tmp_path, f"2026 {NEW}")
    first, second = (one.encrypt("app/a", PAYLOAD) for _ in range(2))
    assert first != second
    assert PAYLOAD not in first
    assert one.decrypt("app/a", first) == one.decrypt("app/a", second) == PAYLOAD


def test_the_first_key_encrypts_and_all_decrypt(tmp_path: Path) -> None:
    before = cipher(tmp_path, f"2025 {OLD}").encrypt("a", PAYLOAD)
    both = cipher(tmp_path, "# in use since May", f"2026 {NEW}", "", f"2025 {OLD}")
    assert both.decrypt("a", before) == PAYLOAD
    after = both.encrypt("a", PAYLOAD)
    assert cipher(tmp_path, f"2026 {NEW}").decrypt("a", after) == PAYLOAD


def test_a_record_that_is_not_encrypted_is_read(tmp_path: Path) -> None:
    assert cipher(tmp_path, f"2026 {NEW}").decrypt("a", PAYLOAD) == PAYLOAD
    assert RecordCipher().encrypt("a", PAYLOAD) == PAYLOAD


@pytest.mark.parametrize("lines", [[f"2026 {NEW}"], []])
def test_a_record_of_an_unknown_key_names_it(tmp_path: Path, lines: list[str]) -> None:
    encrypted = cipher(tmp_path, f"2025 {OLD}").encrypt("app/a", PAYLOAD)
    other = cipher(tmp_path, *lines) if lines else RecordCipher()
    with pytest.raises(SnapshotKeyError) as refused:
        other.decrypt("app/a", encrypted)
    assert str(refused.value) == (
        "the record of session 'a' is encrypted with the key '2025', which this server does not have: add that key to"
        " storage_key_file"
    )


def test_another_key_under_the_same_id_is_reported(tmp_path: Path) -> None:
    encrypted = cipher(tmp_path, f"2026 {OLD}").encrypt("a", PAYLOAD)
    with pytest.raises(SnapshotKeyError, match="cannot be decrypted with the key '2026'"):
        cipher(tmp_path, f"2026 {NEW}").decrypt("a", encrypted)


@pytest.mark.parametrize("record_id", ["app/b", "other/a", "a"])
def test_a_record_does_not_take_the_place_of_another(tmp_path: Path, record_id: str) -> None:
    one = cipher(tmp_path, f"2026 {NEW}")
    with pytest.raises(SnapshotKeyError, match="or the record belongs to another session"):
        one.decrypt(record_id, one.encrypt("app/a", PAYLOAD))


def test_damaged_records_are_distinguished_from_records_of_another_key(tmp_path: Path) -> None:
    one = cipher(tmp_path, f"2026 {NEW}")
    encrypted = one.encrypt("a", PAYLOAD)
    for at in range(4, len(encrypted)):
        changed = bytearray(encrypted)
        changed[at] ^= 1
        with pytest.raises(SnapshotCorruptError):
            one.decrypt("a", bytes(changed))
    for size in range(4, len(encrypted)):
        with pytest.raises(SnapshotCorruptError):
            one.decrypt("a", encrypted[:size])


def test_a_later_format_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cipher(tmp_path, f"2026 {NEW}")
    monkeypatch.setattr("service.sessions.record_cipher.FORMAT", 2)
    later = one.encrypt("a", PAYLOAD)
    monkeypatch.undo()
    with pytest.raises(SnapshotFormatError, match="is encrypted in format 2, but this server reads format 1"):
        one.decrypt("a", later)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], " has no key: "),
        ([f"2026 {NEW}", "2025"], ", line 2 must be `ID BASE64`: "),
        ([f"{NEW} 2026"], ", line 1 must be `ID BASE64`: "),
        ([f"2026 {NEW} {OLD}"], ", line 1 must be `ID BASE64`: "),
        ([f"2026 {NEW}", f"2026 {OLD}"], ", line 2 repeats the id '2026': "),
        (["2026 AAAA"], ", line 1: the key '2026' has 3 bytes, it must have 32"),
        ([f"2026 {NEW[:-1]}"], ", line 1: the key '2026' is not base64: "),
        (["2026 ####"], ", line 1: the key '2026' is not base64: "),
    ],
)
def test_the_error_for_an_invalid_key_file_names_the_line_and_shows_no_key(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = key_file(tmp_path, *lines)
    with pytest.raises(StoreError) as refused:
        read_keys(path)
    assert str(refused.value).startswith(f"storage_key_file = {path}{message}")
    assert not any(word in str(refused.value) for word in (NEW[:-1], OLD, "AAAA", "####"))


def test_a_key_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="is not UTF-8 text"):
        read_keys(tmp_path / "keys")


def test_no_key_is_shown(tmp_path: Path) -> None:
    keys = read_keys(key_file(tmp_path, f"2026 {NEW}"))
    assert NEW not in f"{keys!r} {RecordCipher(keys)!r} {vars(RecordCipher(keys))!r}"
    assert repr(bytes([2]) * 32)[2:-1] not in f"{keys!r} {vars(RecordCipher(keys))!r}"

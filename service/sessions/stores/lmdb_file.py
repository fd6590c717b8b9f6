"""Checks an LMDB file without mapping it. LMDB maps the file, and access to a missing page kills the process (SIGBUS).

The layout is LMDB's data version 1 (LMDB 0.9), with this machine's word size, little-endian. LMDB itself checks files
of other versions. LMDB does not write a page that was allocated and freed in one transaction. So a file may be shorter
than its last page number says, when the missing pages are free. In this case the check reads the list of free pages.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.sessions.stores.base import StoreError

_META = struct.Struct("@NHHI IIPN IHH5N IHH5N NN")
"""Page header: number, pad, flags, bounds. Magic, version, address, size of the map. The trees of free pages and of
databases, each: pad, flags, depth, branch, leaf and overflow pages, entries, root. Last page number, transaction."""
_PAGE = struct.Struct("@NHHHH")
"""Number, pad, flags, end of the node offsets, begin of the nodes."""
_NODE = struct.Struct("@HHHH")
"""Low and high half of the value's size (in a branch: of the child's page number), flags, size of the key."""
_WORD = struct.Struct("@N")

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_PAGE_SIZES = {1 << bits for bits in range(8, 17)}
_BRANCH = 0x01
_IN_OVERFLOW = 0x01
_NO_ROOT = (1 << 8 * _WORD.size) - 1

_ADVICE = "restore it from a backup, or move it away to start without its sessions"


class _Meta(NamedTuple):
    transaction: int
    last_page: int
    free_root: int
    page_size: int
    version: int


def check_data_file(path: Path) -> None:
    """Checks an existing file. Raises StoreError when LMDB could not use it, or would read beyond its end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path} is not a regular file: move it away, or set data_folder to another folder")
        with path.open("r+b", buffering=0) as file:
            _check(path, file.fileno())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read and written ({error.strerror}): make the server's user its owner, or set"
            " data_folder to another folder"
        ) from error


def _check(path: Path, descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise StoreError(f"{path} is empty: {_ADVICE}")
    first = _meta(descriptor, 0)
    if first is None:
        raise StoreError(f"{path} is not an LMDB file: {_ADVICE}")
    if first.version != _VERSION:
        return
    second = _meta(descriptor, first.page_size)
    if second is None:
        raise StoreError(f"{path} is cut off or damaged after its first page: {_ADVICE}")
    meta = max(first, second)
    num_missing = meta.last_page + 1 - size // meta.page_size
    if num_missing > 0 and _num_free(descriptor, meta, size // meta.page_size) < num_missing:
        needed = (meta.last_page + 1) * meta.page_size
        raise StoreError(f"{path} is cut off: it has {size} of {needed} bytes: {_ADVICE}")


def _meta(descriptor: int, offset: int) -> _Meta | None:
    """Returns the meta page at `offset`, or None when there is none."""
    data = os.pread(descriptor, _META.size, offset)
    if len(data) < _META.size:
        return None
    fields = _META.unpack(data)
    magic, version, page_size, free_root = fields[4], fields[5], fields[8], fields[15]
    if magic != _MAGIC or page_size not in _PAGE_SIZES:
        return None
    last_page, transaction = fields[-2:]
    return _Meta(transaction, last_page, free_root, page_size, version)


def _num_free(descriptor: int, meta: _Meta, first_page: int) -> int:
    """Returns how many pages from `first_page` on are free; 0 when the list of free pages is missing or damaged."""
    try:
        pages = _free_pages(descriptor, meta.page_size, meta.free_root)
        return sum(first_page <= page <= meta.last_page for page in pages)
    except (struct.error, RecursionError):
        return 0


def _free_pages(descriptor: int, page_size: int, root: int) -> Iterator[int]:
    """Returns the page numbers in the values of the tree at `root`. Raises struct.error when a page is missing."""
    if root == _NO_ROOT:
        return
    page = os.pread(descriptor, page_size, root * page_size)
    _, _, flags, end, _ = _PAGE.unpack_from(page)
    for offset in struct.unpack_from(f"@{(end - _PAGE.size) // 2}H", page, _PAGE.size):
        low, high, node_flags, key_size = _NODE.unpack_from(page, offset)
        if flags & _BRANCH:
            yield from _free_pages(descriptor, page_size, low | high << 16 | node_flags << 32)
            continue
        begin, size = offset + _NODE.size + key_size, low | high << 16
        if node_flags & _IN_OVERFLOW:
            (number,) = _WORD.unpack_from(page, begin)
            value = os.pread(descriptor, size, number * page_size + _PAGE.size)
        else:
            value = page[begin : begin + size]
        (count,) = _WORD.unpack_from(value)
        yield from struct.unpack_from(f"@{count}N", value, _WORD.size)

"""The web page on which users try the models: files that browsers load by GET, such as `/`. Every client may load them
without a token; the calls that the page makes are checked like all calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "page"
"""The folder of the page's files, which are sent unchanged."""
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".txt": b"text/plain; charset=utf-8",
}
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(self)"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        b" media-src 'self' blob:; worker-src 'self' blob:;"
        b" form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    ),
]


class File(NamedTuple):
    """One file and its headers. tag: the `etag`, a hash of the body."""

    content_type: bytes
    headers: list[tuple[bytes, bytes]]
    tag: bytes
    body: bytes


class Page:
    """The files of the page, read from `folder` at the start. Raises OSError when it cannot be read. Event loop
    only."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = dict(_files(folder))

    def find(self, path: bytes) -> File | None:
        """Returns the file for a path; None when there is none."""
        return self._files.get(path)


def _files(folder: Path) -> Iterator[tuple[bytes, File]]:
    for path in folder.iterdir():
        content_type = _TYPES.get(path.suffix)
        if content_type is not None:
            body = path.read_bytes()
            tag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
            name = "" if path.name == "index.html" else path.name
            yield f"/{name}".encode(), File(content_type, [*_HEADERS, (b"etag", tag)], tag, body)

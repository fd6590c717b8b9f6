"""Which web pages may call: those of allowed origins.

A page that a browser loads from elsewhere can send requests to a server that the browser reaches, and when its own name
is made to mean that server's address (DNS rebinding) it may read the answers: to the browser they are of one origin
then. The server has no pages of its own, so that is no reason to let one in. Browsers tell the page's origin with every
request to another one, and with every POST; over plain text they speak HTTP/1.1 alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names and addresses of this machine alone."""


class Browsers:
    """host: that the server listens on; allowed_origins: of pages, such as `https://app.example`."""

    def __init__(self, host: str, allowed_origins: Iterable[str]) -> None:
        self._is_local = host.strip("[]") in LOOPBACK
        self._allowed = frozenset(allowed_origins)

    def reason_against(self, http_version: str, host: str, origin: str | None) -> str | None:
        """Why a request is refused, in a sentence; None when it may be made. host: the header `host` or `:authority`;
        origin: the header, None without one."""
        if origin in self._allowed:
            return None
        name = _name(host)
        if self._is_local and name not in LOOPBACK and (http_version.startswith("1") or origin is not None):
            return f"host is {host[:100]!r}: a server on the loopback interface is called localhost"
        if origin is not None:
            return f"origin {origin[:100]!r} is not allowed: see allowed_origins"
        return None


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

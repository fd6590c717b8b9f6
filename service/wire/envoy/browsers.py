"""Which web pages may call: the server's own, and those of allowed origins.

A page that a browser loads from elsewhere can send requests to a server that the browser reaches, and when its own name
is made to mean that server's address (DNS rebinding) it may read the answers: to the browser they are of one origin
then. So the server's own page is one that was loaded under a name that it has for sure: a loopback name, an address,
for which nothing is looked up, or one of those that the settings name. Browsers tell the page's origin with every
request to another one, and with every POST; over plain text they speak HTTP/1.1 alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.hosts import LOOPBACK, canonical, host_name, is_address, is_loopback


class Browsers:
    """host: that the server listens on; allowed_origins: of pages, such as `https://app.example`; page_hosts: names of
    this server under which its own page may be loaded, besides loopback names and addresses; None: it has no page."""

    def __init__(self, host: str, allowed_origins: Iterable[str], page_hosts: Iterable[str] | None) -> None:
        self._is_local = is_loopback(host)
        self._allowed = frozenset(allowed_origins)
        self._has_page = page_hosts is not None
        self._names = LOOPBACK.union(canonical(name) for name in page_hosts or ())

    def reason_against(self, http_version: str, host: str, origin: str | None) -> str | None:
        """Why a request is refused, in a sentence; None when it may be made. host: the header `host` or `:authority`;
        origin: the header, None without one."""
        if origin in self._allowed:
            return None
        against_name = self._reason_against_name(host)
        if self._is_local and against_name is not None and (http_version.startswith("1") or origin is not None):
            return against_name
        if origin is None:
            return None
        if self._has_page and origin in (f"http://{host}", f"https://{host}"):
            return against_name
        return f"origin {origin[:100]!r} is not allowed: see allowed_origins"

    def reason_against_page(self, host: str) -> str | None:
        """Why the server's own page cannot be used under a name; None when it can. host: as for `reason_against`."""
        return self._reason_against_name(host) if self._has_page else "this server has no page"

    def _reason_against_name(self, host: str) -> str | None:
        """Why it is not known that a name means this server; None when it is."""
        name = host_name(host)
        if name in self._names or (is_address(name) and not self._is_local):
            return None
        known = "localhost" if self._is_local else "localhost or an address"
        return f"host is {host[:100]!r}: expected {known}{', or a name in page_hosts' if self._has_page else ''}"

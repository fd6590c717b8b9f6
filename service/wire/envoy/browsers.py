"""Decides which web pages may call: the server's own page, and pages of allowed origins.

A web page from elsewhere can send requests to any server that its browser reaches. If the page's host name is made to
resolve to that server's address (DNS rebinding), the page may also read the answers, because the browser then sees one
origin. So the server accepts its own page only under a name that certainly belongs to this server: a loopback name, an
IP address, which needs no lookup, or a name in the settings. Browsers send the page's origin with every request to
another origin and with every POST. Over plain text, browsers use HTTP/1.1 only.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.hosts import LOOPBACK, canonical, host_name, is_address, is_loopback


class Browsers:
    """Decides about requests. host: the address that the server listens on; allowed_origins: of pages, such as
    `https://app.example`; page_hosts: names of this server under which its own page may be loaded, besides loopback
    names and addresses; None: the server has no page."""

    def __init__(self, host: str, allowed_origins: Iterable[str], page_hosts: Iterable[str] | None) -> None:
        self._is_local = is_loopback(host)
        self._allowed = frozenset(allowed_origins)
        self._has_page = page_hosts is not None
        self._names = LOOPBACK.union(canonical(name) for name in page_hosts or ())

    def reason_against(self, http_version: str, host: str, origin: str | None) -> str | None:
        """Returns why a request is refused, in one sentence; None if it is allowed. host: the header `host` or
        `:authority`; origin: the header `origin`, None without one."""
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
        """Returns why the server's page is refused under a name; None if allowed. host: as for `reason_against`."""
        return self._reason_against_name(host) if self._has_page else "this server has no page"

    def _reason_against_name(self, host: str) -> str | None:
        """Returns why a name may not belong to this server; None if it certainly does."""
        name = host_name(host)
        if name in self._names or (is_address(name) and not self._is_local):
            return None
        known = "localhost" if self._is_local else "localhost or an address"
        return f"host is {host[:100]!r}: expected {known}{', or a name in page_hosts' if self._has_page else ''}"

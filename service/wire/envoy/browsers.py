"""Which web pages may call: the server's own, and those of allowed origins.

A page that a browser loads from elsewhere can send requests to a server that the browser reaches, and when its own name
is made to mean that server's address (DNS rebinding) it may read the answers: to the browser they are of one origin
then. So the server's own page is one that was loaded under a name that it has for sure: a loopback name, an address,
for which nothing is looked up, or one of those that the settings name. Browsers tell the page's origin with every
request to another one, and with every POST; over plain text they speak HTTP/1.1 alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from service.ports import LOOPBACK, is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


class Browsers:
    """host: that the server listens on; allowed_origins: of pages, such as `https://app.example`; page_hosts: names of
    this server under which its own page may be loaded, besides loopback names and addresses; None: it has no page."""

    def __init__(self, host: str, allowed_origins: Iterable[str], page_hosts: Iterable[str] | None) -> None:
        self._is_local = is_loopback(host)
        self._allowed = frozenset(allowed_origins)
        self._names = None if page_hosts is None else LOOPBACK | {name.lower() for name in page_hosts}

    def reason_against(self, http_version: str, host: str, origin: str | None) -> str | None:
        """Why a request is refused, in a sentence; None when it may be made. host: the header `host` or `:authority`;
        origin: the header, None without one."""
        if origin in self._allowed:
            return None
        name = _name(host)
        is_named = name in (self._names or LOOPBACK)
        if self._is_local and not is_named and (http_version.startswith("1") or origin is not None):
            return f"host is {host[:100]!r}: a server on the loopback interface is called localhost"
        if origin is None:
            return None
        if self._names is not None and origin in (f"http://{host}", f"https://{host}"):
            return None if is_named or _is_address(name) else self._unnamed(host)
        return f"origin {origin[:100]!r} is not allowed: see allowed_origins"

    def reason_against_page(self, host: str) -> str | None:
        """Why the server's own page cannot be used under a name; None when it can. host: as for `reason_against`."""
        name = _name(host)
        if self._names is None:
            return "this server has no page"
        return None if name in self._names or (_is_address(name) and not self._is_local) else self._unnamed(host)

    @staticmethod
    def _unnamed(host: str) -> str:
        return f"host is {host[:100]!r}: to use the page under this name, give it in page_hosts"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """The name or the address in a host; empty for what is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found[1].strip("[]").lower()

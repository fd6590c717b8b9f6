"""Host names and addresses, as they are written in settings, URLs and the header `host`. Does not resolve names."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names and addresses of the loopback interface."""
ANY = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104  # compared with the setting, not bound
"""Addresses that stand for all addresses of the machine, as in the setting `host`."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_NAME = re.compile(r"[a-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = ("http", ":80"), ("https", ":443")


def canonical(name: str) -> str:
    """Returns the canonical spelling of a name or an address: in lower case, without the brackets of IPv6, and without
    the dot at the end of a full name."""
    plain = name.lower().removesuffix(".")
    address = plain[1:-1] if plain.startswith("[") and plain.endswith("]") else plain
    return str(ip_address(address)) if is_address(address) else plain


def host_name(host: str) -> str:
    """Returns the canonical name or address in a header `host`; empty if the header is malformed."""
    found = _HOST.fullmatch(host)
    name = "" if found is None else canonical(found[1])
    return "" if name.startswith("[") else name


def is_address(name: str) -> bool:
    """Whether a name, without brackets, is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without brackets, can be reached only from this machine."""
    return canonical(host) in LOOPBACK


def in_url(host: str) -> str:
    """Returns a name or an address as URLs contain it: IPv6 in brackets."""
    plain = canonical(host)
    return f"[{plain}]" if is_address(plain) and isinstance(ip_address(plain), IPv6Address) else plain


def checked_host(name: str) -> str:
    """Returns a setting's host or address in canonical spelling. Raises ValueError if no header `host` can have it."""
    plain = canonical(name)
    if not (_NAME.fullmatch(plain) or is_address(plain)) or "%" in plain:
        raise ValueError("expected a name or an address without a scheme, a port or a path, such as carousel.example")
    return plain


def is_redis_url(url: str) -> bool:
    """Whether a URL has a scheme for Redis, and a valid host and port or a socket's path."""
    try:
        parts = urlsplit(url)
        has_place = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:  # not passed on: its message may contain a part of the password
        return False
    return parts.scheme in ("redis", "rediss", "unix") and has_place and not parts.fragment


def checked_without_user(url: str) -> str:
    """Returns the URL of a setting that logs may show. Raises ValueError for a URL with a user or a password."""
    if "@" in url:
        raise ValueError("expected a URL without a user and a password, such as http://collector:4317")
    return url


def checked_origin(origin: str) -> str:
    """Returns a setting's origin of web pages. Raises ValueError for a text that no browser sends as an origin."""
    found = _ORIGIN.fullmatch(origin)
    if origin != "null" and (
        found is None or any(origin.startswith(f"{scheme}://") and found[2] == port for scheme, port in _DEFAULT_PORTS)
    ):
        raise ValueError(
            "expected a URL scheme://name or scheme://name:port, in lower case, without a path and without the scheme's"
            " default port, such as https://app.example"
        )
    return origin

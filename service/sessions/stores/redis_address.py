"""The address of a Redis as messages show it, its errors as errors of the store, and a check that it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis

from service.sessions.stores.base import StoreError


def check_reachable(url: str, timeout_s: float = 2.0) -> None:
    """Pings a Redis, and waits for at most `timeout_s`. Raises StoreError."""
    client = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    with client, as_store_errors(address_of(url)):
        client.ping()


def address_of(url: str) -> str:
    """Returns the URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


@contextmanager
def as_store_errors(address: str) -> Iterator[None]:
    """Raises StoreError, with advice, for an error of Redis or of the connection in the block."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreError(f"the store at {address} fails: {error}{_hint(address, str(error))}") from error


def _hint(address: str, message: str) -> str:
    if "WRONGPASS" in message or "invalid username-password" in message or "invalid password" in message:
        return ": correct the user and the password in redis_url"
    if "NOAUTH" in message or "already authenticated" in message or "Authentication required" in message:
        return ": it requires a password: set redis_url to redis://:PASSWORD@HOST:PORT/0, or with USER before the colon"
    if address.startswith("rediss:"):
        return ": if it does not use TLS, set redis_url to a URL that begins with redis:// instead of rediss://"
    return ""

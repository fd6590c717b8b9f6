"""Where a Redis is, as messages say it, and whether it answers."""

from __future__ import annotations

from urllib.parse import urlsplit

import redis

from service.sessions.stores.base import StoreError


def check_reachable(url: str, timeout_s: float = 2.0) -> None:
    """Asks a Redis for nothing, and waits so long for its answer. Raises StoreError."""
    with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            raise failed(address_of(url), error) from error


def address_of(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def failed(address: str, error: Exception) -> StoreError:
    """For what Redis, or the way to it, answers instead."""
    return StoreError(f"the store at {address} does not do it: {error}")

"""The setting with the address of a Redis."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr

from service.hosts import is_redis_url

_DEFAULT = "redis://127.0.0.1:6379/0"


class RedisUrl(SecretStr):
    """The URL of a Redis, which may contain a password. Only the default URL is shown in texts."""

    def _display(self) -> str:
        return _DEFAULT if self.get_secret_value() == _DEFAULT else super()._display()


def _checked(url: RedisUrl) -> RedisUrl:
    if not is_redis_url(url.get_secret_value()):
        raise ValueError(
            "expected redis://host:port/database, rediss:// for TLS, or unix:///path, with user:password@ before the"
            " host if it needs them; write / ? # @ in a password as %2F %3F %23 %40 (the value is not shown: it may"
            " contain a password)"
        )
    return url


CheckedRedisUrl = Annotated[RedisUrl, AfterValidator(_checked)]
DEFAULT = RedisUrl(_DEFAULT)

"""The conditions of a start, except for the bundles. The server's start and `--check` check the same conditions.

Nothing is created, and nothing stays open, so a failed start leaves nothing behind. A resource that another process has
for now, such as a port, is not a condition: see `in_use`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

from service.certificates import certificates_of
from service.listeners import check_tracing, principals
from service.ports import why_not
from service.process import StartError
from service.repository.repository import RepositoryError, look_at
from service.sessions.stores.base import StoreError
from service.sessions.stores.open_store import check_store, is_store_in_use
from service.settings import Settings
from service.storing import cipher_of
from service.wire import choice


class Condition(NamedTuple):
    """subject: the file that the check is about, to be shown; empty if no file was given. check: raises StartError."""

    subject: str
    check: Callable[[Settings], object]


def conditions(settings: Settings) -> list[Condition]:
    """Returns all conditions, in the order in which a start needs them."""
    return [
        Condition("", choice.choose),
        Condition("", _check_ports),
        Condition(str(settings.tls_cert_file or ""), certificates_of),
        Condition(str(settings.tokens_file or ""), principals),
        Condition("", check_tracing),
        Condition("", _check_models),
        Condition(str(settings.storage_key_file or ""), cipher_of),
        Condition(str(settings.snapshot_key_file or ""), _check_store),
    ]


def demand(settings: Settings) -> None:
    """Raises StartError for the first condition that does not hold. Blocks: reads files, and may connect to Redis."""
    for condition in conditions(settings):
        condition.check(settings)


def in_use(settings: Settings) -> Iterator[str]:
    """Yields what a start cannot get now because another process has it: ports, and the embedded store's folder."""
    for port in filter(None, _ports(settings).values()):
        if reason := why_not(settings.host, port, is_in_use=True):
            yield f"{settings.host}:{port}: {reason}"
    if is_store_in_use(settings.store, settings.data_folder):
        yield f"{settings.data_folder}: another process uses it"


def _ports(settings: Settings) -> dict[str, int]:
    metrics_port, health_port = settings.metrics_port if settings.metrics else 0, settings.health_port or 0
    return {"port": settings.port, "metrics_port": metrics_port, "health_port": health_port}


def _check_ports(settings: Settings) -> None:
    given = _ports(settings)
    for (one, port), (other, same) in combinations(given.items(), 2):
        if port and port == same:
            raise StartError(f"{one} = {port} and {other} = {same} are the same port: set one of them to another port")
    for port in given.values():
        if reason := why_not(settings.host, port, is_in_use=False):
            raise StartError(f"cannot listen on {settings.host}:{port}: {reason}")


def _check_models(settings: Settings) -> None:
    try:
        look_at(settings.model_folder, settings.runtimes)
    except RepositoryError as error:
        raise StartError(str(error)) from error


def _check_store(settings: Settings) -> None:
    try:
        check_store(
            settings.store,
            key_file=settings.snapshot_key_file,
            data_folder=settings.data_folder,
            redis_url=settings.redis_url.get_secret_value(),
        )
    except StoreError as error:
        raise StartError(str(error)) from error

"""The services under test, one of each kind for each wire: the service of `servicer.py`, and the real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_service import LocalService
from service.wire.envoy import library
from tests.services import local_service

GRACE_S = 0.5
"""Grace time in seconds for calls that are open when a service stops."""
COMMAND = (sys.executable, "-m", "tests.wire.conformance.serving")


def require(wire: str) -> None:
    """Skips the test if this machine lacks what a wire needs; with TESTS_REQUIRE_SERVICES=1, fails it."""
    if wire == "envoy":
        try:
            library.libpython_path()
        except library.MissingError as error:
            (pytest.fail if os.environ.get("TESTS_REQUIRE_SERVICES") == "1" else pytest.skip)(str(error))


@pytest.fixture(params=["grpcio", "envoy"])
def wire(request: pytest.FixtureRequest) -> str:
    """The name of each wire."""
    name = str(request.param)
    require(name)
    return name


@pytest.fixture
def service(wire: str, request: pytest.FixtureRequest) -> LocalService:
    """The service of `servicer.py` on each wire. Tests share it and must leave it as they found it."""
    service = request.getfixturevalue(f"{wire}_service")
    assert isinstance(service, LocalService)
    return service


@pytest.fixture
def carousel(wire: str, request: pytest.FixtureRequest) -> LocalService:
    """The real service of the tiny language models on each wire. Tests share it and must leave it as they found it."""
    service = request.getfixturevalue(f"{wire}_carousel")
    assert isinstance(service, LocalService)
    return service


@pytest.fixture(scope="session")
def grpcio_service() -> Iterator[LocalService]:
    """See `service`."""
    with local_service(None, {"wire": "grpcio", "shutdown-grace-s": GRACE_S}, command=COMMAND) as service:
        yield service


@pytest.fixture(scope="session")
def envoy_service() -> Iterator[LocalService]:
    """See `service`. For tests of what only Envoy supports, or does correctly."""
    require("envoy")
    with local_service(None, {"wire": "envoy", "shutdown-grace-s": GRACE_S}, command=COMMAND) as service:
        yield service


@pytest.fixture(scope="session")
def grpcio_carousel(tiny_repository: Path) -> Iterator[LocalService]:
    """See `carousel`."""
    with local_service(tiny_repository, {"wire": "grpcio"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] in ("warning", "error")]


@pytest.fixture(scope="session")
def envoy_carousel(tiny_repository: Path) -> Iterator[LocalService]:
    """See `carousel`."""
    require("envoy")
    with local_service(tiny_repository, {"wire": "envoy"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] in ("warning", "error")]


def serving_pid(service: LocalService) -> int:
    """Returns the id of the process that holds a service's connections: the started one, or Envoy's."""
    return service.pids[-1]

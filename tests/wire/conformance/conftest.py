"""The services that the suite calls: one a wire and a worker, that of `servicer.py` and the real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_service import LocalService, local_service
from service.wire.envoy import library
from tests.processes import children_of

GRACE_S = 0.5
"""For calls that are left when a service stops."""
COMMAND = (sys.executable, "-m", "tests.wire.conformance.serving")


def require(wire: str) -> None:
    """Skips a test, or fails it where TESTS_REQUIRE_SERVICES is 1, when a wire cannot be had here."""
    if wire == "envoy":
        try:
            library.libpython_path()
        except library.MissingError as error:
            (pytest.fail if os.environ.get("TESTS_REQUIRE_SERVICES") == "1" else pytest.skip)(str(error))


@pytest.fixture(params=["grpcio", "envoy"])
def wire(request: pytest.FixtureRequest) -> str:
    """Each wire."""
    name = str(request.param)
    require(name)
    return name


@pytest.fixture
def service(wire: str, request: pytest.FixtureRequest) -> LocalService:
    """The service that does what it is asked to, on each wire, shared by tests that leave it as they found it."""
    service = request.getfixturevalue(f"{wire}_service")
    assert isinstance(service, LocalService)
    return service


@pytest.fixture
def carousel(wire: str, request: pytest.FixtureRequest) -> LocalService:
    """The real service on the tiny language models, on each wire, shared likewise."""
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
    """See `service`: for what Envoy alone can do, or does right."""
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
    """The process that has a service's connections: the one that was started, or Envoy."""
    children = [pid for pid in children_of(service.process.pid) if Path(f"/proc/{pid}/comm").read_text() == "envoy\n"]
    return children[0] if children else service.process.pid

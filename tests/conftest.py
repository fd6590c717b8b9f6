"""Fixtures for all tests: repositories of bundles, and a real service in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_service import LocalService, local_service
from tests.bundles import write_language_model

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "model_repository"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--wire envoy`: every service that a test starts has that wire."""
    parser.addoption("--wire", choices=("grpcio", "envoy"), default="grpcio", help="what carries the services' calls")


def pytest_configure(config: pytest.Config) -> None:
    """Services that tests start in processes of their own read the variable."""
    os.environ["CAROUSEL_WIRE"] = config.getoption("--wire")


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of random language models: `tiny-lm`, `tiny-bos` that has a start token, `tiny-endless` that has one
    and no end token, and `tiny-heads`, as `tiny-bos` but with heads, a readout, and a variant `other`."""
    folder = tmp_path_factory.mktemp("repository")
    write_language_model(folder)
    write_language_model(folder, model="tiny-bos", bos_id=1, seed=1)
    write_language_model(folder, model="tiny-endless", bos_id=1, eos_id=None, seed=2)
    write_language_model(folder, model="tiny-heads", bos_id=1, seed=1, has_heads=True, variants={"other": 3})
    return folder


@pytest.fixture(scope="session")
def shipped_service() -> Iterator[LocalService]:
    """A real service on the shipped bundles, shared by tests that leave it as they found it."""
    with local_service(SHIPPED) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.fixture(scope="session")
def tiny_service(tiny_repository: Path) -> Iterator[LocalService]:
    """A real service on the tiny language models, shared by tests that leave it as they found it."""
    with local_service(tiny_repository, {"log-level": "debug"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]

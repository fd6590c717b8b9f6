"""Fixtures for all tests: repositories of bundles, and real services in child processes."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from examples.local_service import LocalService
from tests.bundles import write_language_model
from tests.services import local_service

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "model_repository"


gc.disable()  # it would take a third of the time in which tests are collected
hypothesis.settings.register_profile("carousel", deadline=None)  # a busy machine is no fault of the example
hypothesis.settings.load_profile("carousel")


_FIRST = ("test_benchmarks.py", "page", "end_to_end", "export", "cli", "client", "wire", "distributions", "simulation")
"""The tests that take longest, by folder or file: they start first, so that no process works alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the tests; see also `--no-loadscope-reorder` in `scripts/test`."""
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(ROOT / "tests").parts[0], len(places)))


def pytest_collection_finish() -> None:
    """Starts the garbage collector, and keeps it from visiting thousands of collected tests again and again."""
    gc.enable()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option `--wire`: the wire of every service that a test starts."""
    parser.addoption("--wire", choices=("grpcio", "envoy"), default="grpcio", help="what carries the services' calls")


def pytest_configure(config: pytest.Config) -> None:
    """Sets what child processes inherit: the wire, one thread for PyTorch, and that an interrupt ends them, also when a
    shell started the tests in the background."""
    os.environ["CAROUSEL_WIRE"] = config.getoption("--wire")
    # two threads wait for each other in a busy loop: with several processes of tests, for most of the CPU time
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of random language models. `tiny-lm` has an end token only, `tiny-bos` also a start token,
    `tiny-endless` a start token only. `tiny-heads` is as `tiny-bos`, with heads, a readout, and a variant `other`."""
    folder = tmp_path_factory.mktemp("repository")
    write_language_model(folder)
    write_language_model(folder, model="tiny-bos", bos_id=1, seed=1)
    write_language_model(folder, model="tiny-endless", bos_id=1, eos_id=None, seed=2)
    write_language_model(folder, model="tiny-heads", bos_id=1, seed=1, has_heads=True, variants={"other": 3})
    return folder


def only(folder: Path, *models: str) -> Path:
    """Returns a folder that has these of the shipped models: a server loads them sooner than all."""
    folder.mkdir(exist_ok=True)
    for model in models:
        (folder / model).symlink_to(SHIPPED / model)
    return folder


@pytest.fixture(scope="session")
def g2p_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that has `g2p-en` alone."""
    return only(tmp_path_factory.mktemp("g2p"), "g2p-en")


@pytest.fixture(scope="session")
def shipped_service() -> Iterator[LocalService]:
    """A real service of the shipped bundles. Tests share it and must leave it as they found it."""
    with local_service(SHIPPED, {"max-batch-rows": 32}) as service:  # it starts sooner than with 256
        yield service
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.fixture(scope="session")
def tiny_service(tiny_repository: Path) -> Iterator[LocalService]:
    """A real service of the tiny language models. Tests share it and must leave it as they found it."""
    with local_service(tiny_repository, {"log-level": "debug"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]

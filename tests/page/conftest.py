"""A browser, and servers whose page it shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from examples.local_service import LocalService
from tests.conftest import SHIPPED
from tests.page.emitting import write_detector, write_transducer
from tests.page.sounds import FRAME, RATE
from tests.page.tab import Tab, tab
from tests.services import local_service, program


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """What starts browsers."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Browser:
    """Debian's Chromium without windows and microphones: it takes half the CPU time of the whole program."""
    return playwright.chromium.launch(executable_path=program("chromium-headless-shell"), args=["--no-sandbox"])


@pytest.fixture(scope="package")
def server(browser: Browser) -> Iterator[LocalService]:
    """A service of the shipped bundles. It starts after `browser`, so that no service starts without a browser."""
    with local_service(SHIPPED, {"wire": "envoy", "max-batch-rows": 32}) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.fixture(scope="package")
def small_server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service of the small bundles of `tests.page.emitting`: `tiny-emitting` reads three numbers a step,
    `tiny-hearing` and `tiny-level` read sound."""
    folder = tmp_path_factory.mktemp("repository")
    write_transducer(folder, "tiny-emitting", 3)
    write_transducer(folder, "tiny-hearing", FRAME, RATE)
    write_detector(folder, "tiny-level", FRAME, RATE)
    with local_service(folder, {"wire": "envoy"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.fixture
def small_page(browser: Browser, small_server: LocalService) -> Iterator[Tab]:
    """A tab with the page of the small bundles. No request may fail in it."""
    with tab(browser, small_server.target) as made:
        yield made
        assert made.failures == []


@pytest.fixture
def page(browser: Browser, server: LocalService) -> Iterator[Tab]:
    """A tab with the page of the shipped bundles. No request may fail in it."""
    with tab(browser, server.target) as made:
        yield made
        assert made.failures == []

"""A tab of a browser with the page in it, as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from tests.end_to_end import web

expect.set_options(timeout=10_000)


class Tab:
    """The page of the server at `target`. problems: what the browser's console has to complain of; failures: requests
    that were refused or not answered, which the console tells, too. most_at_once: calls that were in flight at once."""

    def __init__(self, page: Page, target: str) -> None:
        self.page, self.target = page, target
        self.problems: list[str] = []
        self.failures: list[str] = []
        self.most_at_once = 0
        self._in_flight: set[Request] = set()
        page.on("console", self._told)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._began)
        page.on("requestfinished", self._ended)
        page.on("requestfailed", self._ended)

    def open(self, model: str, source: str | None = None) -> None:
        """Opens the page, and a session of a model on it."""
        self.page.goto(f"http://{self.target}/")
        self.choose(model, source)

    def choose(self, model: str, source: str | None = None) -> None:
        """Opens a session of another model. source: None leaves the example."""
        self.page.get_by_label("Model").select_option(model)
        expect(self.page.locator(".column")).to_have_count(1)
        form = self.column().locator("form.source")
        if form.is_visible():
            if source is not None:
                form.get_by_label("Source").fill(source)
            form.get_by_role("button", name="Open").click()
        expect(self.column().locator(".body")).to_be_visible()
        self.most_at_once = 0

    def column(self, index: int = 0) -> Locator:
        """The session, or its fork."""
        return self.page.locator(".column").nth(index)

    def box(self, index: int = 0) -> Locator:
        """Where tokens are typed."""
        return self.column(index).get_by_label("Type", exact=True)

    def expect_position(self, position: int, index: int = 0) -> None:
        """Waits until the session has come there."""
        expect(self.column(index).locator(".stats dd").first).to_have_text(str(position))

    def expected(self, index: int = 0) -> list[str]:
        """The names of the tokens that are said to come next."""
        return self.column(index).locator(".candidate:visible .name").all_text_contents()

    def step(self, position: int, index: int = 0) -> Locator:
        """The step that led to a position."""
        return self.column(index).get_by_role("button", name=f"Step {position}:")

    def transcript(self, index: int = 0) -> Locator:
        """What a transducer has emitted, as text."""
        return self.column(index).locator(".transcript .text")

    def status(self, index: int = 0) -> Locator:
        """What the page tells of the session by itself."""
        return self.column(index).locator(".status")

    def ids(self) -> list[str]:
        """The sessions that the address names."""
        return self.page.url.partition("#")[2].split(",")

    def _told(self, message: ConsoleMessage) -> None:
        if message.text.startswith("Failed to load resource"):
            self.failures.append(message.text)
        elif message.type in {"error", "warning"}:
            self.problems.append(message.text)

    def _began(self, request: Request) -> None:
        if request.method == "POST":
            self._in_flight.add(request)
            self.most_at_once = max(self.most_at_once, len(self._in_flight))

    def _ended(self, request: Request) -> None:
        self._in_flight.discard(request)


@contextmanager
def tab(browser: Browser, target: str, **options: Any) -> Iterator[Tab]:
    """A tab of its own, without what others have kept. options: of Playwright's `new_context`. At the end nothing may
    be wrong with the page."""
    context = browser.new_context(**options)
    try:
        made = Tab(context.new_page(), target)
        yield made
        assert made.problems == []
    finally:
        context.close()


def ask(target: str, method: str, **fields: Any) -> Any:
    """A call in JSON, beside the page's."""
    answer = web.ask(target, f"/carousel.v1.{method}", json.dumps(fields).encode(), web.JSON)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)

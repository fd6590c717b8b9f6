"""A browser tab with the page, used as a person uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from tests.end_to_end import web

expect.set_options(timeout=10_000)


class Tab:
    """The page of the server at `target`.

    problems: errors and warnings of the browser's console. failures: requests that were refused or not answered.
    most_at_once: the largest number of calls that were in flight at the same time.
    """

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
        """Opens a session of another model. source: None keeps the example."""
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
        """Returns the column of the session, or of its fork."""
        return self.page.locator(".column").nth(index)

    def box(self, index: int = 0) -> Locator:
        """Returns the box in which tokens are typed."""
        return self.column(index).get_by_label("Type", exact=True)

    def expect_position(self, position: int, index: int = 0) -> None:
        """Waits until the session is at the position."""
        expect(self.column(index).locator(".stats dd").first).to_have_text(str(position))

    def expected(self, index: int = 0) -> list[str]:
        """Returns the names of the tokens that the page shows as next tokens."""
        return self.column(index).locator(".candidate:visible .name").all_text_contents()

    def step(self, position: int, index: int = 0) -> Locator:
        """Returns the step that led to a position."""
        return self.column(index).get_by_role("button", name=f"Step {position}:")

    def transcript(self, index: int = 0) -> Locator:
        """Returns the text that a transducer has emitted."""
        return self.column(index).locator(".transcript .text")

    def status(self, index: int = 0) -> Locator:
        """Returns the status message of the session."""
        return self.column(index).locator(".status")

    def press(self, name: str) -> None:
        """Presses a button of the session."""
        self.column().get_by_role("button", name=name, exact=True).click()

    def sound(self) -> Locator:
        """Returns the page's message about the sound."""
        return self.column().locator(".sound [role=status]")

    def position(self) -> int:
        """Returns the session's position on the server."""
        return int(ask(self.target, "Inference/Step", sessionId=self.ids()[0])["position"])

    def ids(self) -> list[str]:
        """Returns the session ids in the page's address."""
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
    """A new tab without stored data of other tabs. options: for Playwright's `new_context`. At the end, the page may
    have no problems."""
    context = browser.new_context(**options)
    try:
        made = Tab(context.new_page(), target)
        yield made
        assert made.problems == []
    finally:
        context.close()


def ask(target: str, method: str, **fields: Any) -> Any:
    """Makes a call in JSON, independently of the page. Returns the response."""
    answer = web.ask(target, f"/carousel.v1.{method}", json.dumps(fields).encode(), web.JSON)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)

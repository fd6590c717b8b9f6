"""The page is accessible: axe finds no violations, a phone shows it without scrolling sideways, and the keyboard is
enough."""

from __future__ import annotations

from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from examples.local_service import LocalService
from tests.page.tab import Tab, tab

PHONE, DESK = 360, 1280
LOOKS: tuple[tuple[Literal["light", "dark"], int], ...] = (("light", DESK), ("dark", PHONE))


def check(page: Tab) -> None:
    """Checks what the page shows now, in each theme at one width. The styles of a theme do not depend on the width."""
    for theme, width in LOOKS:
        page.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.page.set_viewport_size({"width": width, "height": 800})
        found = Axe().run(page.page)
        assert found.violations_count == 0, f"{theme}, {width} wide: {found.generate_report()}"
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} wide"


def test_axe_finds_nothing(browser: Browser, server: LocalService) -> None:
    with tab(browser, server.target) as page:
        page.open("g2p-en", "gate")
        page.box().press_sequentially("G ")
        page.expect_position(1)
        page.column().get_by_role("button", name="Fork").click()
        page.expect_position(1, 1)
        page.box().press_sequentially("no-phoneme ")
        expect(page.column().get_by_role("alert")).to_contain_text("no-phoneme")
        for details in page.page.get_by_text("The call made last").all():
            details.click()
        check(page)
        page.choose("co2-forecast")
        page.column().get_by_role("button", name="Forecast").click()
        expect(page.column().get_by_role("button", name="Forecast")).to_be_visible()
        check(page)
        page.choose("stress-en")
        page.box().press_sequentially("L UW ")
        page.expect_position(2)
        check(page)


def test_the_page_works_with_the_keyboard_only(page: Tab) -> None:
    page.open("pychar-en")
    keyboard = page.page.keyboard
    expect(page.box()).to_be_focused()
    keyboard.type("de")
    page.expect_position(2)
    keyboard.press("Tab")
    first = page.column().locator(".candidate").first
    expect(first).to_be_focused()
    keyboard.press("Enter")
    page.expect_position(3)
    expect(page.box()).to_have_value("def")
    page.step(1).focus()
    keyboard.press("Enter")
    page.expect_position(1)
    expect(page.box()).to_be_focused()

"""Draws docs/pictures/page.png, the page in both themes: `python -m page.picture`. Needs Chromium and Envoy."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize, expect, sync_playwright

from examples.local_service import local_service

ROOT = Path(__file__).resolve().parent.parent
TO = ROOT / "docs" / "pictures" / "page.png"
SIZE = ViewportSize(width=860, height=1270)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def shot(browser: Browser, target: str, theme: Literal["light", "dark"]) -> bytes:
    """Returns a screenshot in which half of a word is pronounced."""
    page = browser.new_page(color_scheme=theme, viewport=SIZE, reduced_motion="reduce")
    page.goto(f"http://{target}/")
    page.get_by_label("Model").select_option("g2p-en")
    page.get_by_role("button", name="Open").click()
    box = page.get_by_label("Type", exact=True)
    expect(box).to_be_focused()
    box.press_sequentially("K EH R AH S ")
    expect(page.locator(".stats dd").first).to_have_text("5")
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    return page.screenshot()


def main() -> None:
    """Draws the picture."""
    with sync_playwright() as playwright, local_service(ROOT / "model_repository", {"wire": "envoy"}) as service:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shots = [base64.b64encode(shot(browser, service.target, theme)).decode() for theme in THEMES]
        images = "".join(f'<img src="data:image/png;base64,{one}">' for one in shots)
        both = browser.new_page(viewport={"width": 2 * SIZE["width"], "height": SIZE["height"]})
        both.set_content(f"<body style='margin:0;display:flex'>{images}</body>")
        both.screenshot(path=TO)


if __name__ == "__main__":
    main()

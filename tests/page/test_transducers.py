"""Models on the page that read frames and emit tokens."""

from __future__ import annotations

import base64
import struct

import pytest
from playwright.sync_api import Browser, expect

from examples.local_service import LocalService
from tests.page.emitting import HISTORY
from tests.page.tab import Tab, ask, tab
from tests.page.test_accessibility import check

MODEL = "tiny-emitting"
QUIET, LOUD, VERY = "0 0 0", "0.5, 0.2, 0.3", "1 -1 1"


@pytest.fixture
def page(small_page: Tab) -> Tab:
    """A tab with the page of the small bundles."""
    return small_page


def feed(page: Tab, *frames: str, index: int = 0) -> None:
    """Types frames, one in each line, and feeds them."""
    page.column(index).get_by_label("Frames").fill("\n".join(frames))
    page.column(index).get_by_role("button", name="Feed").click()
    expect(page.column(index).get_by_label("Frames")).to_have_value("")


def tokens(page: Tab) -> list[str]:
    """Returns the emitted tokens as a screen reader reads them, each with its description."""
    return [" ".join(text.split()) for text in page.column().locator(".emitted li:visible").all_text_contents()]


def test_frames_are_typed_and_tokens_are_shown(page: Tab) -> None:
    page.open(MODEL)
    expect(page.transcript()).to_have_text("Nothing yet.")
    feed(page, QUIET, LOUD)
    page.expect_position(2)
    expect(page.transcript()).to_have_text("a")
    expect(page.column().locator(".transcript")).not_to_contain_text("limit")
    feed(page, LOUD, QUIET, VERY, QUIET)
    page.expect_position(6)
    expect(page.transcript()).to_have_text("abc")
    assert tokens(page) == ["a75 %, step 2", "b75 %, step 5", "c50 %, step 5, the symbol limit was reached"]
    expect(page.column().locator(".transcript")).to_contain_text("At one frame the limit of 2 tokens was reached")
    expect(page.step(5)).to_have_accessible_name("Step 5: 1 -1 1, answer b c")
    assert page.most_at_once == 1
    lines = page.column().get_by_label("Python lines").text_content()
    assert "features=[[0.5, 0.2, 0.3], [0, 0, 0], [1, -1, 1], [0, 0, 0]], position=2, mark=True)" in str(lines)
    assert "print(step.position, step.emitted)" in str(lines)


def test_incomplete_frames_are_reported(page: Tab) -> None:
    page.open(MODEL)
    box = page.column().get_by_label("Frames")
    box.fill("1 2 3 4")
    box.press("Enter")
    expect(page.column().get_by_role("alert")).to_have_text("A step reads 3 numbers: 2 are missing.")
    expect(box).to_have_value("1 2 3 4")


def test_a_transcript_goes_back_and_forks_with_its_session(page: Tab) -> None:
    page.open(MODEL)
    feed(page, VERY, QUIET)
    feed(page, LOUD, QUIET, LOUD)
    expect(page.transcript()).to_have_text("abca")
    page.step(4).click()
    page.expect_position(4)
    expect(page.transcript()).to_have_text("abc")
    expect(page.status()).to_have_text("")
    page.column().get_by_role("button", name="Fork").click()
    expect(page.transcript(1)).to_have_text("abc")
    feed(page, VERY, index=1)
    expect(page.transcript(1)).to_have_text("abcab")
    feed(page, LOUD)
    expect(page.transcript()).to_have_text("abca")
    page.page.reload()
    expect(page.transcript(1)).to_have_text("abcab")
    expect(page.transcript()).to_have_text("abca")


def test_what_was_emitted_is_shown_after_a_reload_and_elsewhere(page: Tab, browser: Browser) -> None:
    page.open(MODEL)
    feed(page, VERY, QUIET, VERY, QUIET, VERY, QUIET)
    expect(page.transcript()).to_have_text("abcabc")
    before = tokens(page)
    page.page.reload()
    expect(page.transcript()).to_have_text("abcabc")
    assert tokens(page) == before
    # this tab gets the tokens from the server, which keeps only the last ones
    with tab(browser, page.target) as elsewhere:
        elsewhere.page.goto(page.page.url)
        expect(elsewhere.transcript()).to_have_text(f"… {'abcabc'[-HISTORY:]}")
        assert tokens(elsewhere) == [f"…{6 - HISTORY} tokens before these", *"abcabc"[-HISTORY:]]
        feed(elsewhere, LOUD)
        expect(elsewhere.transcript()).to_have_text("… cabca")
        assert tokens(elsewhere)[-1] == "a75 %, step 7"
        assert ask(page.target, "Inference/Step", sessionId=page.ids()[0])["position"] == "7"


def test_the_transcript_includes_tokens_of_other_clients(browser: Browser, small_server: LocalService) -> None:
    with tab(browser, small_server.target) as page:
        page.open(MODEL)
        feed(page, VERY, QUIET)
        data = base64.b64encode(struct.pack("<3f", 0.5, 0.5, 0.5)).decode()
        ask(page.target, "Inference/Step", sessionId=page.ids()[0], feed={"features": {"shape": [3], "data": data}})
        page.column().get_by_label("Frames").fill(QUIET)
        page.column().get_by_role("button", name="Feed").click()
        expect(page.status()).to_have_text("Another client fed the session. It is at step 3 now.")
        expect(page.transcript()).to_have_text("abc")
        feed(page, QUIET, LOUD)
        page.expect_position(5)
        assert tokens(page) == ["a", "b", "c", "a75 %, step 5"]


def test_axe_finds_nothing_with_a_transcript(page: Tab) -> None:
    page.open(MODEL)
    feed(page, *12 * [VERY, QUIET])
    page.column().get_by_role("button", name="Fork").click()
    expect(page.column(1)).to_be_visible()
    check(page)

"""The microphone on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Playwright, expect

from examples.local_service import LocalService
from tests.page.sounds import FRAME, MICROPHONE, RATE, write_wav
from tests.page.tab import Tab, tab
from tests.services import program

MODEL = "tiny-hearing"
NO_OTHER_RATE = """
const make = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
  if (this.sampleRate < 16000) throw new DOMException("another rate", "NotSupportedError");
  return make.call(this, stream);
};
"""


@pytest.fixture(scope="module")
def hearing_browser(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose microphone repeats `sounds.MICROPHONE` to each page that has the permission."""
    file = write_wav(tmp_path_factory.mktemp("sounds") / "microphone.wav", MICROPHONE)
    microphone = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={file}"]
    path = program("chromium")
    started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *microphone])
    yield started
    started.close()


@pytest.fixture
def page(hearing_browser: Browser, small_server: LocalService) -> Iterator[Tab]:
    """A tab with the page of the small bundles, which may use the microphone."""
    with tab(hearing_browser, small_server.target, permissions=["microphone"]) as made:
        yield made
        assert made.failures == []


def test_the_microphone_is_fed_as_it_comes_until_it_is_stopped(page: Tab) -> None:
    page.open(MODEL)
    expect(page.column()).to_contain_text(f"The model reads {RATE} samples per second, {FRAME} in each step.")
    page.press("Listen")
    expect(page.sound()).to_have_text("Listening.")
    expect(page.transcript()).to_have_text(re.compile("^abca"))
    expect(page.column().get_by_role("meter", name="Level")).not_to_have_attribute("aria-valuenow", "0")
    expect(page.column().get_by_role("button", name="Feed the file")).to_be_disabled()
    page.press("Stop")
    expect(page.sound()).to_have_text("Stopped.")
    heard = str(page.column().locator(".ear .time").text_content())
    stands = page.position()
    assert heard == f"{stands * FRAME / RATE:.1f} s"
    page.expect_position(stands)
    expect(page.column().get_by_role("meter", name="Level")).to_have_attribute("aria-valuenow", "0")
    assert page.most_at_once == 1
    page.page.reload()
    expect(page.transcript()).to_have_text(re.compile("^abca"))
    page.column().get_by_role("button", name=re.compile("^Mark at step")).first.click()
    expect(page.column().locator(".stats dd").first).not_to_have_text(str(stands))
    assert 0 < page.position() < stands


def test_the_microphone_works_in_a_browser_that_cannot_resample(page: Tab) -> None:
    page.page.add_init_script(NO_OTHER_RATE)
    page.open(MODEL)
    page.press("Listen")
    expect(page.transcript()).to_have_text(re.compile("^ab"))
    page.press("Stop")
    expect(page.sound()).to_have_text("Stopped.")
    assert f"{page.position() * FRAME / RATE:.1f} s" == page.column().locator(".ear .time").text_content()


def test_a_lost_microphone_is_reported(page: Tab) -> None:
    page.page.add_init_script(
        "const ask = MediaDevices.prototype.getUserMedia;"
        "MediaDevices.prototype.getUserMedia ="
        " async function (what) { return window.heard = await ask.call(this, what); };"
    )
    page.open(MODEL)
    page.press("Listen")
    expect(page.sound()).to_have_text("Listening.")
    page.page.evaluate("heard.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.sound()).to_have_text("The microphone was disconnected, or the browser ended its use.")
    expect(page.column().get_by_role("button", name="Listen")).to_be_enabled()
    assert page.page.evaluate("heard.getAudioTracks()[0].readyState") == "ended"


def test_sound_is_left_out_where_the_server_is_slower(hearing_browser: Browser, small_server: LocalService) -> None:
    with tab(hearing_browser, small_server.target, permissions=["microphone"]) as page:
        page.open(MODEL)
        page.press("Listen")
        expect(page.sound()).to_have_text("Listening.")
        page.page.route("**/carousel.v1.Inference/Step", lambda route: route.abort())
        expect(page.status()).to_contain_text("Not connected")
        expect(page.sound()).to_contain_text("s of sound were dropped: the server is slower than the microphone.")
        page.page.unroute("**/carousel.v1.Inference/Step")
        expect(page.status()).to_contain_text("Connected again")
        page.press("Stop")
        expect(page.column().get_by_role("button", name="Listen")).to_be_enabled()


def test_why_there_is_no_microphone_is_told_in_words(hearing_browser: Browser, small_server: LocalService) -> None:
    with tab(hearing_browser, small_server.target) as page:
        page.open(MODEL)
        page.press("Listen")  # the page has no permission
        expect(page.column().get_by_role("alert")).to_contain_text(
            "The browser does not allow this page to use the microphone"
        )
        page.page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', window.name); }"
        )
        for name, words in (
            ("NotFoundError", "No microphone was found."),
            ("NotReadableError", "The microphone cannot be read: another program may be using it."),
        ):
            page.open(MODEL)
            page.page.evaluate("name => { window.name = name; }", name)
            page.press("Listen")
            expect(page.column().get_by_role("alert")).to_contain_text(words)
            expect(page.column().get_by_role("button", name="Listen")).to_be_focused()
        page.page.evaluate("Object.defineProperty(window, 'isSecureContext', { value: false })")
        page.press("Listen")
        expect(page.column().get_by_role("alert")).to_contain_text("only on pages of https:// and of localhost")

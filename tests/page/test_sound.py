"""Models of sound on the page: the microphone, and files."""

from __future__ import annotations

import base64
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from examples.local_service import LocalService
from tests.page.sounds import FRAME, RATE, Tones, samples_of, write_wav
from tests.page.tab import Tab, ask, tab
from tests.page.test_accessibility import check

MODEL = "tiny-hearing"
TONES: Tones = [(0.0, 0.1), (0.4, 0.2), (0.0, 0.1), (1.0, 0.2), (0.0, 0.15)]
"""A loud tone gives one token and a very loud one two. The last step is not full."""
NUM_STEPS = 38
NO_OTHER_RATE = """
const make = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
  if (this.sampleRate < 16000) throw new DOMException("another rate", "NotSupportedError");
  return make.call(this, stream);
};
"""


@pytest.fixture
def page(small_page: Tab) -> Tab:
    """A tab with the page of the small bundles, which may use the microphone."""
    small_page.page.context.grant_permissions(["microphone"])
    return small_page


def status(page: Tab) -> Any:
    """Returns an assertion on the page's message about the sound."""
    return expect(page.column().locator(".sound [role=status]"))


def press(page: Tab, name: str) -> None:
    """Presses a button of the session."""
    page.column().get_by_role("button", name=name, exact=True).click()


def feed(page: Tab, file: Path, pace: str = "At once") -> None:
    """Feeds a file, and waits until it is fed."""
    page.column().get_by_label("Sound file").set_input_files(file)
    page.column().get_by_label("Pace").select_option(pace)
    press(page, "Feed the file")
    status(page).to_have_text(f"0.8 s of {file.name} were fed.")


def position(page: Tab) -> int:
    """Returns the session's position on the server."""
    return int(ask(page.target, "Inference/Step", sessionId=page.ids()[0])["position"])


def test_the_microphone_is_fed_as_it_comes_until_it_is_stopped(page: Tab) -> None:
    page.open(MODEL)
    expect(page.column()).to_contain_text(f"The model reads {RATE} samples per second, {FRAME} in each step.")
    press(page, "Listen")
    status(page).to_have_text("Listening.")
    expect(page.transcript()).to_have_text(re.compile("^abca"))
    expect(page.column().get_by_role("meter", name="Level")).not_to_have_attribute("aria-valuenow", "0")
    expect(page.column().get_by_role("button", name="Feed the file")).to_be_disabled()
    press(page, "Stop")
    status(page).to_have_text("Stopped.")
    heard = str(page.column().locator(".ear .time").text_content())
    stands = position(page)
    assert heard == f"{stands * FRAME / RATE:.1f} s"
    page.expect_position(stands)
    expect(page.column().get_by_role("meter", name="Level")).to_have_attribute("aria-valuenow", "0")
    assert page.most_at_once == 1
    page.page.reload()
    expect(page.transcript()).to_have_text(re.compile("^abca"))
    page.column().get_by_role("button", name=re.compile("^Mark at step")).first.click()
    expect(page.column().locator(".stats dd").first).not_to_have_text(str(stands))
    assert 0 < position(page) < stands


def test_the_microphone_works_in_a_browser_that_cannot_resample(page: Tab) -> None:
    page.page.add_init_script(NO_OTHER_RATE)
    page.open(MODEL)
    press(page, "Listen")
    expect(page.transcript()).to_have_text(re.compile("^ab"))
    press(page, "Stop")
    status(page).to_have_text("Stopped.")
    assert f"{position(page) * FRAME / RATE:.1f} s" == page.column().locator(".ear .time").text_content()


def test_a_lost_microphone_is_reported(page: Tab) -> None:
    page.page.add_init_script(
        "const ask = MediaDevices.prototype.getUserMedia;"
        "MediaDevices.prototype.getUserMedia ="
        " async function (what) { return window.heard = await ask.call(this, what); };"
    )
    page.open(MODEL)
    press(page, "Listen")
    status(page).to_have_text("Listening.")
    page.page.evaluate("heard.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    status(page).to_have_text("The microphone was disconnected, or the browser ended its use.")
    expect(page.column().get_by_role("button", name="Listen")).to_be_enabled()
    assert page.page.evaluate("heard.getAudioTracks()[0].readyState") == "ended"


def test_sound_is_left_out_where_the_server_is_slower(browser: Browser, small_server: LocalService) -> None:
    with tab(browser, small_server.target, permissions=["microphone"]) as page:
        page.open(MODEL)
        press(page, "Listen")
        status(page).to_have_text("Listening.")
        page.page.route("**/carousel.v1.Inference/Step", lambda route: route.abort())
        expect(page.status()).to_contain_text("Not connected")
        status(page).to_contain_text("s of sound were dropped: the server is slower than the microphone.")
        page.page.unroute("**/carousel.v1.Inference/Step")
        expect(page.status()).to_contain_text("Connected again")
        press(page, "Stop")
        expect(page.column().get_by_role("button", name="Listen")).to_be_enabled()


def test_why_there_is_no_microphone_is_told_in_words(browser: Browser, small_server: LocalService) -> None:
    with tab(browser, small_server.target) as page:
        page.open(MODEL)
        press(page, "Listen")  # the page has no permission
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
            press(page, "Listen")
            expect(page.column().get_by_role("alert")).to_contain_text(words)
            expect(page.column().get_by_role("button", name="Listen")).to_be_focused()
        page.page.evaluate("Object.defineProperty(window, 'isSecureContext', { value: false })")
        press(page, "Listen")
        expect(page.column().get_by_role("alert")).to_contain_text("only on pages of https:// and of localhost")


@pytest.mark.parametrize(("rate", "channels", "pace"), [(RATE, 1, "At once"), (16_000, 2, "At the speed of the sound")])
def test_a_file_is_fed(page: Tab, tmp_path: Path, rate: int, channels: int, pace: str) -> None:
    page.open(MODEL)
    feed(page, write_wav(tmp_path / "tones.wav", TONES, rate=rate, channels=channels), pace)
    page.expect_position(NUM_STEPS)
    expect(page.transcript()).to_have_text("abc")
    assert page.most_at_once == 1


def test_a_call_of_many_numbers_is_not_copied_but_how_to_feed_a_file_is(page: Tab, tmp_path: Path) -> None:
    page.open(MODEL)
    feed(page, write_wav(tmp_path / "tones.wav", TONES))
    command = f"carousel --target {page.target} stream {MODEL} sound.wav"
    for name in ("curl", "Python"):
        lines = page.column().get_by_label(f"{name} lines")
        expect(lines).to_have_text(re.compile(f"^# The call had {6 * FRAME} numbers.*{command}$", re.DOTALL))


def test_a_file_that_is_not_sound_is_reported(page: Tab, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    page.open(MODEL)
    page.column().get_by_label("Sound file").set_input_files(tmp_path / "notes.wav")
    press(page, "Feed the file")
    expect(page.column().get_by_role("alert")).to_contain_text(
        "notes.wav is not a sound file that this browser can read"
    )
    assert ask(page.target, "Inference/Step", sessionId=page.ids()[0]).get("position", "0") == "0"


def test_a_detector_of_sound_is_plotted(page: Tab, tmp_path: Path) -> None:
    page.open("tiny-level")
    feed(page, write_wav(tmp_path / "tones.wav", TONES))
    samples = samples_of(TONES)
    last = samples[FRAME * (NUM_STEPS - 1) :]
    data = struct.pack(f"<{FRAME}f", *last, *(FRAME - len(last)) * [0.0])
    features = {"shape": [1, FRAME], "data": base64.b64encode(data).decode()}
    answer = ask(page.target, "Inference/Step", open={"model": "tiny-level"}, feed={"features": features})
    given = answer["fed"]["outputs"][0].get("values", [0.0])[0]
    plot = page.column().get_by_role("img", name="Plot:")
    expect(plot).to_have_attribute("aria-label", f"Plot: {NUM_STEPS} steps, {given:.5f} given last.")


def test_axe_finds_nothing_with_sound(page: Tab, tmp_path: Path) -> None:
    page.open(MODEL)
    feed(page, write_wav(tmp_path / "tones.wav", TONES))
    check(page)

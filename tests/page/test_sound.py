"""Files of sound on the page; see also `test_microphone.py`."""

from __future__ import annotations

import base64
import re
import struct
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.sounds import FRAME, RATE, Tones, samples_of, write_wav
from tests.page.tab import Tab, ask
from tests.page.test_accessibility import check

MODEL = "tiny-hearing"
TONES: Tones = [(0.0, 0.1), (0.4, 0.2), (0.0, 0.1), (1.0, 0.2), (0.0, 0.15)]
"""A loud tone gives one token and a very loud one two. The last step is not full."""
NUM_STEPS = 38


@pytest.fixture
def page(small_page: Tab) -> Tab:
    """A tab with the page of the small bundles."""
    return small_page


def feed(page: Tab, file: Path, pace: str = "At once") -> None:
    """Feeds a file, and waits until it is fed."""
    page.column().get_by_label("Sound file").set_input_files(file)
    page.column().get_by_label("Pace").select_option(pace)
    page.press("Feed the file")
    expect(page.sound()).to_have_text(f"0.8 s of {file.name} were fed.")


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
    page.press("Feed the file")
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

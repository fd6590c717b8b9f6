"""Morse code as heard on the air: text, keyed by hand, as a fading tone in noise. Everything is generated from a seed.

A word has the length of PARIS with the gap after it, 50 units; at 20 words a minute a unit is 60 ms. A dot is one unit,
a dash three. Gaps are one unit within a character, three between characters, and seven between words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.recipes import morse_text

RATE = 8000
"""Samples a second."""
FRAME = 320
"""Samples of a frame: 40 ms."""
BLANK = "<blank>"
CODE = {
    **{"a": ".-", "b": "-...", "c": "-.-.", "d": "-..", "e": ".", "f": "..-.", "g": "--.", "h": "....", "i": ".."},
    **{"j": ".---", "k": "-.-", "l": ".-..", "m": "--", "n": "-.", "o": "---", "p": ".--.", "q": "--.-", "r": ".-."},
    **{"s": "...", "t": "-", "u": "..-", "v": "...-", "w": ".--", "x": "-..-", "y": "-.--", "z": "--.."},
    **{"0": "-----", "1": ".----", "2": "..---", "3": "...--", "4": "....-", "5": ".....", "6": "-....", "7": "--..."},
    **{"8": "---..", "9": "----.", ".": ".-.-.-", ",": "--..--", "?": "..--..", "/": "-..-.", "=": "-...-"},
}
"""The characters and their dots and dashes. Morse has one case."""
VOCABULARY = (BLANK, " ", *CODE)
PREFIXES = tuple(sorted({code[:length] for code in CODE.values() for length in range(len(code) + 1)}))
"""Every part of a character that may have been heard; the first is the empty part."""

SPEEDS = (10.0, 30.0)
"""The slowest and the fastest speed, in words a minute."""
NOISIEST_DB = -6.0

_EDGE_S = 0.005
_LEAST_GAP_UNITS = 0.3
_LONGEST_AFTER_UNITS = 14.0

_HEARD_UNITS, _OVER_UNITS = 0.2, 2.2
"""Units after its end at which a mark counts as heard, and at which its character counts as complete: a gap is one unit
within a character and three after it."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class Mark(NamedTuple):
    """The times at which the key goes down and up, in seconds from the first mark; the character's dots and dashes so
    far."""

    begin: float
    end: float
    prefix: str


@dataclass(frozen=True, slots=True)
class Fist:
    """How a text is keyed. words_per_minute: speed of the characters. stretch: factor for gaps between characters and
    words, which the Farnsworth method lengthens. weight: length of a dash in dots. jitter: standard deviation of the
    logarithm of the lengths of dots, dashes and gaps; 0 for a machine's keying."""

    words_per_minute: float = 20.0
    stretch: float = 1.0
    weight: float = 3.0
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class Air:
    """How the sound arrives. snr_db: the power of the tone relative to the noise from 0 to 4 kHz; infinite for no
    noise.
    gain: the largest sample. fade_depth: the share of the amplitude lost at the deepest fading, which occurs fade_hz
    times a second."""

    tone_hz: float = 600.0
    snr_db: float = np.inf
    gain: float = 0.5
    fade_depth: float = 0.0
    fade_hz: float = 0.1


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text and its sound. samples: float32 in -1 to 1, whole frames. heard: [T] for each frame the index in
    `PREFIXES` of the part of a character that was heard by its end."""

    text: str
    fist: Fist
    air: Air
    samples: FloatArray
    heard: IntArray

    @property
    def frames(self) -> FloatArray:
        """The samples as [T, FRAME]."""
        return self.samples.reshape(-1, FRAME)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Limits for drawn utterances. seconds: their approximate length. worst_db: the least SNR. jitter: the most."""

    seconds: float = 10.0
    worst_db: float = NOISIEST_DB
    jitter: float = 0.12


def draw(
    generator: np.random.Generator,
    split: morse_text.Split,
    difficulty: Difficulty,
    *,
    words_per_minute: float | None = None,
    snr_db: float | None = None,
) -> Utterance:
    """Draws an utterance. A generator with the same seed draws the same one. words_per_minute, snr_db: replace the
    drawn values."""
    speed = generator.uniform(*SPEEDS)
    stretch = generator.uniform(1.0, 2.0) if generator.random() < 0.2 else 1.0
    fist = Fist(
        words_per_minute or speed, stretch, generator.uniform(2.6, 3.6), generator.uniform(0.0, difficulty.jitter)
    )
    noise = generator.uniform(difficulty.worst_db, 30.0) if generator.random() < 0.9 else np.inf
    air = Air(
        tone_hz=generator.uniform(400.0, 1000.0),
        snr_db=noise if snr_db is None else snr_db,
        gain=float(np.exp(generator.uniform(np.log(0.05), 0.0))),
        fade_depth=generator.uniform(0.0, 0.6) if generator.random() < 0.5 else 0.0,
        fade_hz=generator.uniform(0.05, 0.4),
    )
    text = _fill(generator, split, fist, difficulty.seconds)
    return synthesize(text, fist, air, generator)


def synthesize(text: str, fist: Fist, air: Air, generator: np.random.Generator) -> Utterance:
    """Makes the sound of a text, with some silence before it, and enough after it to end the last character. Raises
    KeyError for a character that Morse does not have."""
    marks = key(text, fist, generator)
    unit = unit_s(fist.words_per_minute)
    before = generator.uniform(0.0, 1.0)
    after = unit * generator.uniform(5.0, _LONGEST_AFTER_UNITS)
    ends = marks[-1].end if marks else 0.0
    num_frames = int(np.ceil((before + ends + after) * RATE / FRAME))
    times = np.arange(num_frames * FRAME, dtype=np.float32) / np.float32(RATE)
    envelope = np.zeros_like(times)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, round(_EDGE_S * RATE) + 1) / (_EDGE_S * RATE + 1))
    for begin, end, _ in marks:
        first, last = round((before + begin) * RATE), round((before + end) * RATE)
        envelope[first:last] = 1.0
        envelope[first : first + len(ramp)] = ramp
        envelope[last - len(ramp) : last] = ramp[::-1]
    fading = np.cos(2.0 * np.pi * (air.fade_hz * times + generator.random()))
    envelope *= 1.0 - air.fade_depth * (0.5 + 0.5 * fading)
    samples = envelope * np.sin(2.0 * np.pi * (air.tone_hz * times + generator.random()))
    noise = np.sqrt(0.5 / 10.0 ** (air.snr_db / 10.0))
    if noise:
        samples += np.float32(noise) * generator.standard_normal(len(samples), dtype=np.float32)
    loudest = float(np.abs(samples).max())
    scaled = np.asarray(samples * (air.gain / loudest if loudest else 1.0), np.float32)
    return Utterance(text, fist, air, scaled, _heard(marks, unit, before, num_frames))


def key(text: str, fist: Fist, generator: np.random.Generator) -> list[Mark]:
    """Returns the marks of a text. Raises KeyError for a character that Morse does not have."""
    unit = unit_s(fist.words_per_minute)
    marks: list[Mark] = []
    now = 0.0
    gap = 0.0

    def held(units: float) -> float:
        return unit * units * float(np.exp(fist.jitter * generator.standard_normal()))

    for character in text:
        if character == " ":
            gap = 7.0 * fist.stretch
            continue
        code = CODE[character]
        for place, element in enumerate(code, start=1):
            if marks:
                now += max(held(gap), _LEAST_GAP_UNITS * unit)
            length = held(1.0 if element == "." else fist.weight)
            marks.append(Mark(now, now + length, code[:place]))
            now += length
            gap = 1.0
        gap = 3.0 * fist.stretch
    return marks


def _heard(marks: Sequence[Mark], unit: float, before: float, num_frames: int) -> IntArray:
    """Returns `Utterance.heard`. before: seconds of silence."""
    times, heard = [], [0]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        times.append(before + mark.end + _HEARD_UNITS * unit)
        heard.append(PREFIXES.index(mark.prefix))
        if following is None or len(following.prefix) == 1:
            over = mark.end + _OVER_UNITS * unit
            times.append(before + (over if following is None else min(over, following.begin)))
            heard.append(0)
    ends = np.arange(1, num_frames + 1) * FRAME / RATE
    return np.asarray(heard)[np.searchsorted(times, ends, side="right")]


def unit_s(words_per_minute: float) -> float:
    """Returns the length of a dot in seconds: a minute has 50 units for each word."""
    return 60.0 / (50.0 * words_per_minute)


def encode(text: str) -> list[int]:
    """Returns the ids of a text's characters. Raises ValueError for a character outside the vocabulary."""
    return [VOCABULARY.index(character) for character in text]


def decode(ids: Sequence[int]) -> str:
    """Returns the text of ids."""
    return "".join(VOCABULARY[index] for index in ids)


def _fill(generator: np.random.Generator, split: morse_text.Split, fist: Fist, seconds: float) -> str:
    """Draws words that last about `seconds` together, one word at least. Cuts them if they last longer."""
    text = ""
    units = seconds / unit_s(fist.words_per_minute)
    while (length := num_units(text, fist.stretch)) < 0.75 * units:
        text += (" " if text else "") + morse_text.draw_word(generator, split)
    while length > 1.25 * units and len(text) > 1:
        text = text[:-1].rstrip()
        length = num_units(text, fist.stretch)
    return text


def num_units(text: str, stretch: float = 1.0) -> float:
    """Returns the length of a text in units, keyed by a machine, including the gap after its last character."""
    total = 0.0
    for character in text:
        if character == " ":
            total += 4.0 * stretch  # the character before has counted three more
        else:
            code = CODE[character]
            total += sum(1 if element == "." else 3 for element in code) + len(code) - 1 + 3.0 * stretch
    return total

"""Sounds in WAV files: tones with silence in between."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path

RATE, FRAME = 8000, 160
"""Samples per second, and samples per step (20 ms)."""
Tones = list[tuple[float, float]]
"""Each tone as its amplitude and its duration in seconds."""

MICROPHONE: Tones = [(0.0, 0.3), (0.4, 0.3)]


def samples_of(tones: Tones, rate: int = RATE) -> list[float]:
    """Returns numbers from -1 to 1, rounded as in a 16-bit file."""
    found: list[float] = []
    for amplitude, seconds in tones:
        for _ in range(round(seconds * rate)):
            sample = amplitude * math.sin(2 * math.pi * 500 * len(found) / rate)
            found.append(round(32767 * sample) / 32768)
    return found


def write_wav(path: Path, tones: Tones, *, rate: int = RATE, channels: int = 1) -> Path:
    """Writes the tones to a WAV file with identical channels. Returns the path."""
    numbers = [round(32768 * sample) for sample in samples_of(tones, rate) for _ in range(channels)]
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(numbers)}h", *numbers))
    return path

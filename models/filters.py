"""A filter bank: turns frames of samples into the power of each band, in short windows.

A window is multiplied by cosines and sines. The power of a band is the sum of the squares of both products: a discrete
Fourier transform at chosen frequencies. Windows lie within one frame, so frames do not depend on each other.

Shapes: `B` batch, `T` frames, `N` samples of a frame, `W` windows of a frame, `K` bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FLOOR = 1e-7
"""Power below which everything counts as silence; a full-scale tone has power 1."""
_VECTOR = 16
"""The most floats in one vector register."""


@dataclass(frozen=True, slots=True)
class Bands:
    """The windows and bands. rate: samples a second. frame, window: their lengths in samples. hop: samples from the
    beginning of one window to the next; windows lie within a frame. low, high: first and last band in hertz."""

    rate: int = 8000
    frame: int = 320
    window: int = 160
    hop: int = 80
    low: float = 400.0
    high: float = 1000.0
    count: int = 25

    @property
    def begins(self) -> range:
        """The first sample of each window of a frame."""
        return range(0, self.frame - self.window + 1, self.hop)

    @property
    def feature_size(self) -> int:
        """How many numbers a frame becomes: W * (K + 2)."""
        return len(self.begins) * (self.count + 2)


class FilterBank(nn.Module):
    """Computes for each window the contrast of each band, which is its loudness minus the mean of all bands, then the
    largest contrast, and the mean. Loudness is logarithmic. Only the mean depends on the gain. It has no parameters."""

    bank: Tensor
    contrasts: Tensor

    def __init__(self, bands: Bands) -> None:
        super().__init__()
        self.bands = bands
        frequencies = torch.linspace(bands.low, bands.high, bands.count, dtype=torch.float64)
        times = torch.arange(bands.window, dtype=torch.float64) / bands.rate
        angles = 2.0 * math.pi * times[:, None] * frequencies  # [window, K]
        # silent bands pad to whole vector registers, so that all logarithms are computed in the same way: the last
        # elements of an array that do not fill a register get other bits, and which ones these are depends on the batch
        fill = -bands.count % _VECTOR
        parts = [nn.functional.pad(part * (2.0 / bands.window), (0, fill)) for part in (angles.cos(), angles.sin())]
        self.register_buffer("bank", torch.cat(parts, dim=1).float(), persistent=False)
        # a matrix product, because the order of a mean's sum may depend on the batch
        mean = torch.full((bands.count, 1), 1.0 / bands.count)
        contrasts = torch.cat([torch.eye(bands.count) - mean, mean], dim=1)
        self.register_buffer("contrasts", nn.functional.pad(contrasts, (0, 0, 0, fill)), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: [B, T, N] samples in -1 to 1. Returns features, [B, T, W * (K + 2)], about -2 to 2."""
        bands = self.bands
        rows, steps, _ = frames.shape
        windows = torch.stack([frames[..., begin : begin + bands.window] for begin in bands.begins], dim=2)
        products = windows @ self.bank
        squares = products * products
        cosines, sines = squares.chunk(2, dim=-1)
        found = torch.log(cosines + sines + _FLOOR) @ self.contrasts  # [B, T, W, K + 1]
        contrast, mean = found[..., : bands.count], found[..., bands.count :]
        loudest = contrast.amax(dim=-1, keepdim=True)
        features = torch.cat([contrast * 0.5, loudest - 2.0, (mean + 9.0) * 0.25], dim=-1)
        return features.reshape(rows, steps, bands.feature_size)

"""A bank of filters: frames of samples to the power of each band, in short windows.

A window is multiplied with cosines and sines, and the power of a band is the sum of both products' squares: a discrete
Fourier transform at frequencies of one's choice. Windows lie within a frame, so that nothing of it depends on others.

Shapes: `B` batch, `T` frames, `N` samples of a frame, `W` windows of a frame, `K` bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FLOOR = 1e-7
"""The power, of 1 for a full tone, below which all is silence."""
_VECTOR = 16
"""The most floats that a processor takes at once."""


@dataclass(frozen=True, slots=True)
class Bands:
    """rate: samples a second; frame, window: their samples; hop: samples between the beginnings of two windows of a
    frame, which lie within it; low, high: the first and the last band's frequency in hertz."""

    rate: int = 8000
    frame: int = 320
    window: int = 160
    hop: int = 80
    low: float = 400.0
    high: float = 1000.0
    count: int = 25

    @property
    def begins(self) -> range:
        """Of the windows of a frame."""
        return range(0, self.frame - self.window + 1, self.hop)

    @property
    def feature_size(self) -> int:
        """The numbers that a frame becomes: W * (K + 2)."""
        return len(self.begins) * (self.count + 2)


class FilterBank(nn.Module):
    """Of each window the contrast of the bands, which is their loudness over the mean of all, the largest contrast, and
    the mean. Only the mean changes with the gain. There is nothing to learn."""

    bank: Tensor
    contrasts: Tensor

    def __init__(self, bands: Bands) -> None:
        super().__init__()
        self.bands = bands
        frequencies = torch.linspace(bands.low, bands.high, bands.count, dtype=torch.float64)
        times = torch.arange(bands.window, dtype=torch.float64) / bands.rate
        angles = 2.0 * math.pi * times[:, None] * frequencies  # [window, K]
        # silent bands fill up to whole vectors of the processor, so that all logarithms are taken in the same way: the
        # last few of an array, which are no whole vector, have other bits, and which they are depends on the batch
        fill = -bands.count % _VECTOR
        parts = [nn.functional.pad(part * (2.0 / bands.window), (0, fill)) for part in (angles.cos(), angles.sin())]
        self.register_buffer("bank", torch.cat(parts, dim=1).float(), persistent=False)
        # one product, as a mean's sum may run in another order in another batch
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

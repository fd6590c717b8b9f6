"""Weight-only quantisation: large weights rounded to 8 bits, each row with a scale. The arithmetic stays in floats.

1. A row's scale is its largest absolute value over 127 (symmetric, per output channel), rounded up to 11 significant
   bits. So each product of an 8-bit integer and a scale is exact in 32-bit floats, and rounding twice is rounding once.
2. Small weights, biases among them, are left as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 16_384
"""A tensor of fewer weights is small."""
NUM_STEPS = 127
_SCALE_BITS = 11


@torch.no_grad()
def round_weights(module: nn.Module) -> None:
    """Rounds the large weights of a module in place: parameters of two axes or more, along the first."""
    for weights in module.parameters():
        if weights.dim() > 1 and weights.numel() >= MIN_WEIGHTS:
            scales = scales_of(weights)
            weights.copy_((weights / scales).round() * scales + 0.0)  # and no negative zeros


def scales_of(weights: Tensor) -> Tensor:
    """The scale of each row, with the other axes 1. weights: [N, ...] float32."""
    largest = weights.abs().amax(dim=tuple(range(1, weights.dim())), keepdim=True)
    mantissa, exponent = torch.frexp(torch.where(largest > 0, largest / NUM_STEPS, 1.0))
    return torch.ldexp((mantissa * 2**_SCALE_BITS).ceil() / 2**_SCALE_BITS, exponent)

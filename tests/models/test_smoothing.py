"""The loss with label smoothing has PyTorch's value and gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.smoothing import smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_value_and_gradient_are_those_of_pytorch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 11, requires_grad=True)
    targets = torch.tensor([3, 0, 10, 0, 5, 1, 3])
    found = smoothed_cross_entropy(logits, targets, smoothing=smoothing, ignored=0)
    (gradient,) = torch.autograd.grad(3 * found, logits)
    expected = cross_entropy(logits, targets, ignore_index=0, label_smoothing=smoothing)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_gradient_has_the_type_of_the_logits() -> None:
    logits = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    loss = smoothed_cross_entropy(logits, torch.tensor([1, 2, 3]), smoothing=0.1, ignored=0)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == torch.bfloat16
    assert float(gradient.float().sum().abs()) < 0.01

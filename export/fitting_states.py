"""Checks that each tensor returned as a state is the next value of that state, which comparing one step cannot show.

For PyTorch's own layers it is known which result continues which argument. A returned tensor that is not served, and
that an argument with the default None accepts, is a state that the user did not name.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.fitting import Call, Fitted, draw, near
from export.returned import Expected, tensors_of


def check_states(module: nn.Module, call: Call, expected: Expected) -> None:
    """Raises ExportError when states are returned in another order than they are passed, and when a returned tensor
    that is not served is a state without a name."""
    _check_order(module, call, expected)
    _check_left_out(module, call, expected)


def _check_order(module: nn.Module, call: Call, expected: Expected) -> None:
    links: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, given: Sequence[Any], named: dict[str, Any], found: Any) -> None:
        after = found[1] if isinstance(layer, nn.RNNBase) else found
        links.extend(zip(tensors_of([*given[1:], *named.values()]), tensors_of(after), strict=False))

    layers = [one for one in module.modules() if isinstance(one, nn.RNNBase | nn.RNNCellBase)]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    inputs, carried = draw(expected, 1)
    with torch.no_grad():
        after = Fitted(module, call, expected)(inputs, *carried)[1:]
    for hook in hooks:
        hook.remove()
    names = list(expected.states)
    for before, continued in links:
        given = [place for place, tensor in enumerate(carried[: len(names)]) if _has(tensor, before)]
        found = [place for place, tensor in enumerate(after) if _has(tensor, continued)]
        if len(given) == len(found) == 1 and given != found:
            raise ExportError(
                f"{type(module).__name__} returns the next {names[given[0]]} where the next {names[found[0]]} is"
                f" expected: return the states in the order in which they are passed, {', '.join(names)}"
            )


def _check_left_out(module: nn.Module, call: Call, expected: Expected) -> None:
    inputs, carried = draw(expected, 1)
    fitted = Fitted(module, call, expected)
    with torch.no_grad():
        found = tensors_of(fitted.given(inputs, *carried))
    left = [tensor for place, tensor in enumerate(found) if place not in (call.output, *call.states)]
    parameters = inspect.signature(module.forward).parameters.values()
    unused = [one.name for one in parameters if one.default is None and one.name != call.lengths]
    for name in unused:
        for tensor in left:
            try:
                with torch.no_grad():
                    again = tensors_of(fitted.given(inputs, *carried, **{name: torch.randn_like(tensor)}))
            except Exception:  # noqa: S112  # any error: the argument does not take this tensor
                continue
            if len(again) == len(found) and not all(map(near, found, again)):
                raise ExportError(
                    f"{type(module).__name__} takes and returns {name}, which is not among the states: add its shape to"
                    " states"
                )


def _has(state: Tensor, part: Tensor) -> bool:
    """Whether `part` has the values of the state, or of one of its layers."""
    layers = [state, *(state if state.dim() > 2 else ())]
    return any(one.numel() == part.numel() and torch.equal(one.flatten(), part.flatten()) for one in layers)

"""Finds the output and the states among the tensors that a user's module returns, by their shapes in a small run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

ROWS, STEPS, SOURCE = 3, 5, 7
"""Numbers of rows, steps and source steps in a run that tries a module."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a module must return.

    output_size: N of the outputs [B, T, N]. states, contexts: shapes by name, with "batch" where rows are counted.
    vocabulary_size: of the tokens that the module reads; None: it reads `feature_size` numbers a step.
    """

    output_size: int
    states: Mapping[str, tuple[int | str, ...]]
    contexts: Mapping[str, tuple[int | str, ...]]
    vocabulary_size: int | None
    feature_size: int


def tensors_of(returned: object) -> list[Tensor]:
    """Returns the tensors in a module's result, in order: from nested lists, tuples, mappings and objects."""
    if isinstance(returned, Tensor):
        return [returned]
    if isinstance(returned, Mapping):
        returned = list(returned.values())
    elif not isinstance(returned, list | tuple) and hasattr(returned, "__dict__"):
        returned = list(vars(returned).values())
    if isinstance(returned, list | tuple):
        return [tensor for one in returned for tensor in tensors_of(one)]
    return []


def match(found: list[Tensor], expected: Expected, steps: int) -> tuple[int, tuple[int, ...], bool] | str:
    """Returns the places of the output and the states, and whether the output is of one step; or what is wrong."""
    shapes = [sized(shape) for shape in expected.states.values()]
    size = expected.output_size
    wanted = {"all": ROWS * steps * size, "last": ROWS * size}
    for kind in ("all", "last") if steps > 1 else ("all",):
        for output, tensor in enumerate(found):
            ends = tensor.shape[-1:] == (size,) or size == 1
            if tensor.numel() != wanted[kind] or not ends or not tensor.is_floating_point():
                continue
            left = [place for place in range(len(found)) if place != output]
            states: list[int] = []
            for shape in shapes:
                place = next((one for one in left if found[one].shape == shape), None)
                if place is not None:
                    states.append(place)
                    left.remove(place)
            if len(states) == len(shapes) and not [one for one in left if one < max(states, default=output)]:
                return output, tuple(states), kind == "last"
    given_shapes = ", ".join(str(list(one.shape)) for one in found) or "no tensor"
    wants = [f"outputs [{ROWS}, {steps}, {size}]"]
    wants += [f"{name} {list(shape)}" for name, shape in zip(expected.states, shapes, strict=True)]
    what = "tensor" if len(found) == 1 else "tensors"
    advice = "return the outputs as one tensor, joined with torch.cat, and every state after it"
    if len(found) == len(wants):
        advice = (
            "the shapes do not match: correct states and value_size, tags or vocabulary, or change what the module"
            " returns"
        )
    return (
        f"returned {len(found)} {what}, but {len(wants)} were expected: {' and '.join(wants)}, of {ROWS} rows and"
        f" {steps} step{'' if steps == 1 else 's'}. It returned {given_shapes}: {advice}"
    )


def sized(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Returns a shape with "batch" and "source" replaced by the sizes of a run that tries a module."""
    sizes = {"batch": ROWS, "source": SOURCE}
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in shape)

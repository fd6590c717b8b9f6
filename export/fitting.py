"""Finds how to call a user's module, by trying: several steps or one, rows or steps first, states one by one, as a
tuple or in pairs. Also finds which returned tensors are the output and the states.

A module is tried with `ROWS` rows and `STEPS` steps of random inputs. It must return the same for a row alone and in a
batch. If it takes several steps, it must return the same for several steps at once and one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from export.errors import ExportError, first_line
from export.exportable import TakesLengths
from export.proofs.tolerances import MODULE
from export.returned import ROWS, STEPS, Expected, match, sized, tensors_of

Layout = Literal["rows first", "steps first", "one step", "one step, steps first", "one row of steps"]
Nesting = Literal["one by one", "together", "in pairs", "a pair first"]
_SEVERAL: tuple[Layout, ...] = ("rows first", "steps first")
_ONE: tuple[Layout, ...] = ("one step", "one row of steps", "one step, steps first")
"""Layouts of one step: [B, 1], [B] and [1, B]."""
LENGTHS = ("lengths", "length", "input_lengths", "x_lengths", "x_lens", "seq_lengths", "seq_lens", "lens")
CHANGES_ROWS = (
    "returns other values for a row in a batch than for the row alone: its rows must not depend on each other"
)


@dataclass(frozen=True, slots=True)
class Call:
    """How to call the module.

    lengths: the name of its argument for lengths; None: it has none. output, states: their places among the returned
    tensors (`returned.tensors_of`). is_last: whether it returns the output of the last step alone.
    """

    layout: Layout
    nesting: Nesting
    lengths: str | None
    output: int = 0
    states: tuple[int, ...] = ()
    is_last: bool = False

    @property
    def is_one_step(self) -> bool:
        """Whether a call takes one step of each row."""
        return self.layout in _ONE


class Fitted(TakesLengths):
    """A module called as `(inputs, *states, *contexts)`; inputs: [B, T] or [B, T, F], with T = 1 if it takes one step.

    Returns the outputs [B, T, N], then every next state.
    """

    def __init__(self, module: nn.Module, call: Call, expected: Expected) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self._num_states = len(expected.states)
        self._output_size = expected.output_size

    def forward(self, inputs: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Takes and returns what the class describes."""
        found = tensors_of(self.given(inputs, *carried))
        rows, steps = inputs.shape[0], inputs.shape[1]
        output = found[self.call.output]
        if self.call.layout == "steps first":
            output = output.reshape(steps, rows, self._output_size).transpose(0, 1)
        else:
            output = output.reshape(rows, steps, self._output_size)
        return (output, *(found[place] for place in self.call.states))

    def given(self, inputs: Tensor, *carried: Tensor, **others: Tensor) -> object:
        """Returns the module's own result. others: further arguments by name."""
        call = self.call
        arranged = inputs
        if call.layout == "one row of steps":
            arranged = inputs.squeeze(1)
        elif call.layout in ("steps first", "one step, steps first"):
            arranged = inputs.transpose(0, 1)
        keywords = dict(others)
        if call.lengths is not None:
            keywords[call.lengths] = self.lengths_of(inputs)
        states = list(carried[: self._num_states])
        return self.module(arranged, *_nested(states, call.nesting), *carried[self._num_states :], **keywords)


def _nested(states: list[Tensor], nesting: Nesting) -> list[Any]:
    if nesting == "together":
        return [tuple(states)]
    if nesting == "in pairs":
        return [list(zip(states[::2], states[1::2], strict=True))]
    if nesting == "a pair first":
        return [tuple(states[:2]), *states[2:]]
    return list(states)


def fit(module: nn.Module, expected: Expected, *, one_step: bool) -> tuple[Call, list[str]]:
    """Returns how to call the module, and notes for the user.

    one_step: whether the user says that it takes one step. Raises ExportError that says what to change.
    """
    attempts: list[_Failed] = []
    several = None if one_step else _first(module, expected, _SEVERAL, attempts)
    if several is not None and not several[0].is_last:
        _check_steps(module, expected, several[0])
        return several
    one = _first(module, expected, _ONE, attempts)
    if one is None:
        raise ExportError(max(attempts, key=lambda attempt: attempt.progress).problem)
    call, notes = one
    if several is not None:
        _check_steps(module, expected, several[0], one=call)
        notes = [*notes, "it returns the output of one step only, so it is run one step at a time"]
    elif not one_step:
        notes = [*notes, "it takes one step, so it is run one step at a time"]
    return call, notes


@dataclass(frozen=True, slots=True)
class _Failed:
    """A way to call the module that failed. progress: how far it came; the largest gives the best message."""

    progress: int
    problem: str


def _first(
    module: nn.Module, expected: Expected, layouts: Sequence[Layout], attempts: list[_Failed]
) -> tuple[Call, list[str]] | None:
    """Returns the first way that works. Adds the ways that failed before it to `attempts`."""
    for call in _calls(module, expected, layouts):
        found = _try(module, expected, call)
        if not isinstance(found, _Failed):
            return found
        attempts.append(found)
    return None


def _calls(module: nn.Module, expected: Expected, layouts: Sequence[Layout]) -> Iterator[Call]:
    names = inspect.signature(module.forward).parameters
    lengths = next((name for name in LENGTHS if name in names), None)
    nestings: list[Nesting] = ["one by one"]
    if len(expected.states) > 1:
        nestings.append("together")
    if len(expected.states) > 2:
        nestings.append("a pair first")
    if len(expected.states) % 2 == 0 and len(expected.states) > 2:
        nestings.append("in pairs")
    for layout in layouts:
        yield from (Call(layout, nesting, lengths) for nesting in nestings)


def _try(module: nn.Module, expected: Expected, call: Call) -> tuple[Call, list[str]] | _Failed:
    steps = 1 if call.is_one_step else STEPS
    inputs, carried = draw(expected, steps)
    try:
        with torch.no_grad():
            found = tensors_of(Fitted(module, call, expected).given(inputs, *carried))
    except Exception as error:  # a user's module may raise anything
        is_of_arguments = isinstance(error, TypeError) and "argument" in str(error)
        return _Failed(0 if is_of_arguments else 1, _not_called(module, expected, error))
    matched = match(found, expected, steps)
    if isinstance(matched, str):
        return _Failed(2 + (not call.is_one_step), f"{type(module).__name__} {matched}")
    output, states, is_last = matched
    call = replace(call, output=output, states=states, is_last=is_last)
    if is_last:
        return call, []
    if problem := _unsteady(module, expected, call, inputs, carried):
        return _Failed(3, f"{type(module).__name__} {problem}")
    shapes = (*expected.states.values(), *expected.contexts.values())
    of_row = [one.narrow(shape.index("batch"), 0, 1) for one, shape in zip(carried, shapes, strict=True)]
    alone = _run(module, expected, call, inputs[:1], of_row)
    whole = _run(module, expected, call, inputs, carried)
    if alone is None or whole is None or not near(alone[0], whole[0][:1]):
        return _Failed(2, f"{type(module).__name__} {CHANGES_ROWS}")
    notes = []
    if left := [place for place in range(len(found)) if place not in (output, *states)]:
        notes = [f"tensor {place} of what it returns, {list(found[place].shape)}, is not served" for place in left]
    return call, notes


def _check_steps(module: nn.Module, expected: Expected, several: Call, *, one: Call | None = None) -> None:
    """Raises ExportError when several steps at once give another result than one by one.

    one: how to call the module with one step, if it returns the output of one step alone.
    """
    inputs, carried = draw(expected, STEPS)
    whole = _run(module, expected, several, inputs, carried) if one is None else _ends(module, expected, several)
    if whole is None:
        return  # the proofs will report it
    following, outputs, first = list(carried), list[Tensor](), None
    for at in range(STEPS):
        after = _run(module, expected, one or several, inputs[:, at : at + 1], following)
        if after is None:
            return  # the proofs will report it
        first = first or after
        outputs.append(after[0])
        following[: len(after) - 1] = after[1:]
    assert first is not None  # noqa: S101  # there are steps
    if one is not None and all(map(near, whole, first)):
        return  # the module reads the first step alone, so it takes one step
    stepped = [torch.cat(outputs, dim=1)[:, -whole[0].shape[1] :], *following[: len(expected.states)]]
    for name, together, apart in zip(("the output", *expected.states), whole, stepped, strict=True):
        if not near(together, apart):
            off = float((together - apart).abs().max())
            raise ExportError(
                f"{type(module).__name__}: {name} differs by up to {off:.3g} between several steps at once and one by"
                " one. A step must depend only on the states and on the steps before it: a backward direction,"
                " attention over all steps, or a convolution without a cache looks ahead. Remove it, keep what it"
                " needs in a state, or say one_step=True if it always gets one step"
            )


def _ends(module: nn.Module, expected: Expected, several: Call) -> list[Tensor]:
    """Returns the output [B, 1, N] and the states after several steps, of a module that outputs one step alone."""
    inputs, carried = draw(expected, STEPS)
    with torch.no_grad():
        found = tensors_of(Fitted(module, several, expected).given(inputs, *carried))
    return [found[several.output].reshape(ROWS, 1, -1), *(found[place] for place in several.states)]


def _run(
    module: nn.Module, expected: Expected, call: Call, inputs: Tensor, carried: Sequence[Tensor]
) -> list[Tensor] | None:
    try:
        with torch.no_grad():
            return list(Fitted(module, call, expected)(inputs, *carried))
    except Exception:  # a user's module may raise anything
        return None


def _not_called(module: nn.Module, expected: Expected, error: Exception) -> str:
    name, message = type(module).__name__, first_line(error)
    states = ", ".join(expected.states)
    takes = str(inspect.signature(module.forward))
    if "float64" in message or "Double" in message:
        return (
            f"{name} computes in float64, but float32 is served: remove .double() from its forward. Its weights are"
            " converted"
        )
    if isinstance(error, TypeError) and "argument" in message:
        return (
            f"forward{takes} of {name} cannot be called with inputs and the states {states}: make forward take them"
            " after its inputs and return their next values after its outputs"
        )
    shapes = ", ".join(f"{one} {list(sized(shape))}" for one, shape in expected.states.items())
    return f"{name} cannot be called with {ROWS} rows, and states {shapes}: {type(error).__name__}: {message}"


def draw(expected: Expected, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Returns random inputs of `steps` steps, and random states and contexts. Masks are all true."""
    generator = torch.Generator().manual_seed(0)
    if expected.vocabulary_size is not None:
        inputs = torch.randint(1, expected.vocabulary_size, (ROWS, steps), generator=generator)
    else:
        inputs = torch.randn(ROWS, steps, expected.feature_size, generator=generator)
    carried = [0.1 * torch.randn(sized(shape), generator=generator) for shape in expected.states.values()]
    for shape in expected.contexts.values():
        is_mask = len(shape) == 2
        drawn = torch.randn(sized(shape), generator=generator)
        carried.append(torch.ones(sized(shape), dtype=torch.bool) if is_mask else drawn)
    return inputs, carried


def _unsteady(module: nn.Module, expected: Expected, call: Call, inputs: Tensor, carried: Sequence[Tensor]) -> str:
    """Returns what is wrong with a module that gives NaN, or another result each time; empty if nothing is."""
    once, again = (_run(module, expected, call, inputs, carried) for _ in range(2))
    if once is None or again is None:
        return ""
    if any(bool(tensor.isnan().any()) for tensor in once):
        return "returns NaN for finite inputs: check its weights"
    if not all(map(near, once, again)):
        return (
            "returns different values for equal inputs: it draws random numbers, as dropout in training does, or keeps"
            " something between calls that is not among its states"
        )
    return ""


def near(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have one shape and are equal within `tolerances.MODULE`."""
    return first.shape == second.shape and bool(torch.allclose(first, second, rtol=MODULE, atol=MODULE))

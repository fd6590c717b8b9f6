"""Draws random ragged rows, and runs a model over them ("walks"), in any batch and any chunks.

Shapes: `B` batch, `T` time, `S` source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from export.interface import Interface
from export.proofs.runners import Array, IntArray, Runner
from service.repository.manifest import SOURCE_MULTIPLE, StateSpec, TensorSpec

T = TypeVar("T")
MAX_DRAWN_SOURCE = 64
"""Longest random source, also for models that accept longer ones."""

Plan = Sequence[int]
"""How one row's tokens are fed: the number of tokens in each round, 0 for none. The sum is the row's tokens."""

Walk = dict[str, Array]
"""All outputs for one row, by name: contexts at its real positions, initial states, logits and heads at each token,
last states, and under `READOUT` the readout of the last states."""

READOUT = "readout"


@dataclass(frozen=True, slots=True)
class Row:
    """One session's input.

    source: [S] tokens or [S, F] features, empty for a model without an encoder. tokens: [T], or [T, F] features, at
    least one. constants: the values that a session gets when it opens, by the state's name.
    """

    source: Array
    tokens: Array
    constants: Mapping[str, Array] = field(default_factory=dict)


def draw_rows(interface: Interface, generator: np.random.Generator, *, num_rows: int, max_tokens: int) -> list[Row]:
    """Returns rows of random ids, or of normally distributed features.

    A step's ids begin at `interface.least_token`, a source's at 1: sources are padded with 0. Lengths are random, from
    1 to `max_tokens`, and for sources to the model's limit, at most `MAX_DRAWN_SOURCE`.
    """
    encoder, rows = interface.encoder, []
    for _ in range(num_rows):
        source: Array = np.empty(0, np.int64)
        if encoder is not None:
            longest = min(encoder.max_source_length, MAX_DRAWN_SOURCE)
            source = _draw(generator, longest, 1, interface.source_vocabulary_size, encoder.feature_size)
        step, least = interface.step, interface.least_token
        tokens = _draw(generator, max_tokens, least, interface.step_vocabulary_size, step.feature_size)
        begin = 0
        for port in step.inputs:
            if port.dtype == "bool" or port.is_end:
                tokens[:, begin : begin + port.size] = tokens[:, begin : begin + port.size] > 0
            begin += port.size
        constants = {state.name: _draw_constant(generator, state) for state in interface.states if state.constant}
        rows.append(Row(source, tokens, constants))
    return rows


def _draw_constant(generator: np.random.Generator, state: StateSpec) -> Array:
    """Returns a random allowed value of a session constant: a choice, a value near its default, or any numbers."""
    constant = state.constant
    assert constant is not None  # noqa: S101  # the caller has checked it
    noise = generator.standard_normal(state.size)
    numbers: Array
    if constant.is_session_number:
        numbers = np.full(state.size, generator.integers(1, 2**11))
    elif constant.choices:
        numbers = np.array(constant.choices[generator.integers(len(constant.choices))])
    elif constant.default:
        default = np.array(constant.default)
        numbers = np.where(default == 0.0, 0.1 * noise, default * (1.0 + 0.1 * noise))
    else:
        numbers = noise
    return numbers.reshape(state.row_shape).astype(state.input.dtype)


def _draw(
    generator: np.random.Generator, longest: int, least: int, vocabulary_size: int | None, feature_size: int
) -> Array:
    length = int(generator.integers(1, longest + 1))
    if vocabulary_size is not None:
        return generator.integers(least, vocabulary_size, length)
    return generator.standard_normal((length, feature_size)).astype(np.float32)


def stepwise(row: Row) -> Plan:
    """One token a round."""
    return (1,) * len(row.tokens)


def chunked(row: Row) -> Plan:
    """All tokens in one round."""
    return (len(row.tokens),)


def interleaved(row: Row, generator: np.random.Generator) -> Plan:
    """Chunks of random sizes, and rounds without a token between them, as in continuous batching."""
    plan: list[int] = []
    while (left := len(row.tokens) - sum(plan)) > 0:
        plan.append(min(left, int(generator.integers(0, 6))))
    return plan


def distinct_plans(interface: Interface, *, is_step_proven: bool = False) -> list[tuple[str, Callable[[Row], Plan]]]:
    """Returns `stepwise` and `chunked`, with their names, but none that only repeats runs.

    If the graph takes one step, both are the same runs. is_step_proven: whether an earlier proof ran single steps.
    """
    by_step, by_chunk = ("step by step", stepwise), ("in one chunk", chunked)
    if interface.step.max_chunk == 1:
        return [by_step]
    return [by_chunk] if is_step_proven else [by_step, by_chunk]


def padded_width(rows: Sequence[Row]) -> int:
    """Returns the smallest multiple of `SOURCE_MULTIPLE` that is at least the length of each source."""
    longest = max(len(row.source) for row in rows)
    return -(-longest // SOURCE_MULTIPLE) * SOURCE_MULTIPLE


def walk(
    runner: Runner,
    interface: Interface,
    rows: Sequence[Row],
    plans: Sequence[Plan],
    *,
    source_width: int | None = None,
    spoiled: Mapping[int, float] | None = None,
) -> list[Walk]:
    """Runs all rows as one batch, each by its own plan, and returns each row's outputs.

    A chunk larger than the step graph accepts is cut, as the server cuts it. source_width: size of the padded source
    axis (default: `padded_width`). spoiled: for some rows, a value such as NaN that fills their states and contexts
    before the first step.
    """
    contexts, states, walks = _begin(runner, interface, rows, source_width or padded_width(rows))
    for index, value in (spoiled or {}).items():
        for array, tensor in zip((*states, *contexts), interface.carried_inputs, strict=True):
            if np.issubdtype(array.dtype, np.floating):
                with np.errstate(over="ignore"):  # 1e30 is infinity in 16 bits
                    array[_row(tensor, index)] = value
    axes = [_batch_axis(tensor) for tensor in interface.carried_inputs]
    all_tokens, num_tokens = _pad([row.tokens for row in rows])
    answers: list[Array] = []  # for each output at every token, [B, T, ...]
    fed = np.zeros(len(rows), np.int64)
    for chunks in _rounds([_cut(plan, interface.step.max_chunk) for plan in plans]):
        active = np.flatnonzero(chunks)
        lengths = chunks[active]
        begin, width = int(fed[active[0]]), int(lengths[0])
        is_token: Any = slice(None)  # [B, T] of this round
        places: Any = (is_token, slice(begin, begin + width))
        if len(active) == len(rows) and (lengths == width).all() and (fed == begin).all():  # always if there is one row
            tokens = np.ascontiguousarray(all_tokens[places])
        else:
            is_token = np.arange(lengths.max()) < lengths[:, None]
            places = np.repeat(active, lengths), (fed[active, None] + np.arange(lengths.max()))[is_token]
            tokens = np.zeros((*is_token.shape, *all_tokens.shape[2:]), all_tokens.dtype)
            tokens[is_token] = all_tokens[places]
        carried = [_taken(array, active, axis) for array, axis in zip((*states, *contexts), axes, strict=True)]
        found = runner.step(tokens, lengths, carried)
        outputs = [found[0], *found[1 + len(states) :]]
        if not answers:
            answers = [np.zeros((*all_tokens.shape[:2], *output.shape[2:]), output.dtype) for output in outputs]
        for array, output in zip(answers, outputs, strict=True):
            array[places] = output[is_token]
        for array, advanced, axis in zip(states, found[1:], axes, strict=False):
            array[_at(axis, active)] = advanced
        fed += chunks
    readout = runner.read_out([*states, *contexts])
    per_token = (interface.step.output, *interface.head_outputs)
    for index, walked in enumerate(walks):
        walked |= {
            tensor.name: array[index, : num_tokens[index]] for tensor, array in zip(per_token, answers, strict=False)
        }
        for array, state in zip(states, interface.states, strict=True):
            walked[state.output] = array[_row(state.input, index)]
        if readout is not None:
            walked[READOUT] = readout[index]
    return walks


def _begin(
    runner: Runner, interface: Interface, rows: Sequence[Row], source_width: int
) -> tuple[list[Array], list[Array], list[Walk]]:
    """Returns contexts and initial states in batch order, and walks with the encoder's outputs for each row."""
    given: dict[str, Array] = {}
    if interface.encoder is not None:
        source, lengths = _pad([row.source for row in rows], source_width)
        names = [tensor.name for tensor in interface.encoder_outputs]
        given = {name: array.copy() for name, array in zip(names, runner.encode(source, lengths), strict=True)}
    contexts = [given[context.output] for context in interface.contexts]
    states = [
        given[state.initial] if state.initial else _first(state, interface, rows, runner.float_dtype)
        for state in interface.states
    ]
    walks: list[Walk] = []
    for index, row in enumerate(rows):
        found: Walk = {}
        for context, array in zip(interface.contexts, contexts, strict=True):
            found[context.output] = array[index, : len(row.source)].copy()
        for state, array in zip(interface.states, states, strict=True):
            if state.initial:
                found[state.initial] = array[_row(state.input, index)].copy()
        walks.append(found)
    return contexts, states, walks


def _cut(plan: Plan, max_chunk: int | None) -> Plan:
    if max_chunk is None:
        return plan
    whole = [[max_chunk] * (chunk // max_chunk) + [chunk % max_chunk] * (chunk % max_chunk > 0) for chunk in plan]
    return [piece for chunk, pieces in zip(plan, whole, strict=True) for piece in (pieces if chunk else [0])]


def _rounds(plans: Sequence[Plan]) -> Iterator[IntArray]:
    """Yields the number of tokens of each row in every round in which a row has any."""
    rounds = np.zeros((max(len(plan) for plan in plans), len(plans)), np.int64)
    for row, plan in enumerate(plans):
        rounds[: len(plan), row] = plan
    return (chunks for chunks in rounds if chunks.any())


def _taken(array: Array, rows: IntArray, axis: int) -> Array:
    """Returns these rows of an array, contiguous. It may be the array itself. rows: ascending."""
    return np.ascontiguousarray(array if len(rows) == array.shape[axis] else array.take(rows, axis))


def _pad(sequences: Sequence[Array], width: int | None = None) -> tuple[Array, IntArray]:
    """Returns ids [B, width], or features [B, width, F], padded with 0, and lengths [B]."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    first = sequences[0]
    ids = np.zeros((len(sequences), width or int(lengths.max()), *first.shape[1:]), first.dtype)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return ids, lengths


def _first(state: StateSpec, interface: Interface, rows: Sequence[Row], float_dtype: type[np.floating]) -> Array:
    """Returns the first values, in all rows, of a state that the encoder does not return."""
    tensor = state.input
    dtype = float_dtype if tensor.dtype == "float32" else np.dtype(tensor.dtype)
    values = np.zeros([len(rows) if axis == "batch" else int(axis) for axis in tensor.shape], dtype)
    for index, row in enumerate(rows):
        if state.name in interface.first_values:
            values[_row(tensor, index)] = interface.first_values[state.name]
        elif state.constant is not None:
            values[_row(tensor, index)] = row.constants[state.name]
    return values


def _batch_axis(tensor: TensorSpec) -> int:
    return tensor.shape.index("batch")


def _at(axis: int, rows: T) -> tuple[slice | T, ...]:
    """Returns the index of a row, or of rows, of an array whose batch axis is `axis`."""
    return (*(slice(None),) * axis, rows)


def _row(tensor: TensorSpec, index: int) -> tuple[slice | int, ...]:
    """Returns the index of one row of a tensor, at its batch axis."""
    return _at(_batch_axis(tensor), index)

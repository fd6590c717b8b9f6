"""The arena: contiguous arrays with one row per session, which hold every session's state and context.

Owns the arrays and knows which row is in use. Knows no session, no clock, and starts no thread.

Rules:
1. Row 0 belongs to no session: padded rows of a batch read it. After initialization it is never written.
2. The state and context of a new slot are zero, except for states with configured first values.
3. A slot carries the generation of its row. Releasing a slot increases the row's generation, so a second release raises
   ValueError and never affects the row's next owner.
4. The arena keeps the state of the last batch as the graph returned it, until another call needs it in the arrays. A
   batch of the same rows, which a lone session or a gateway's step batch repeats, then needs no gather and no scatter.
5. The arrays are allocated whole at the start and not written to. The operating system assigns memory to a page when a
   session first writes to it, so room for a million sessions costs nothing until they exist. The arrays come directly
   from mmap, because inside Envoy the allocator is Envoy's, which writes to all memory that it zeroes.

One thread calls `acquire`; another, or the same, calls everything else. They share only the free list, whose append and
pop are atomic, and only one of them uses a row at a time.

Shapes: `B` rows of a batch, `S` source positions.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.repository.manifest import SOURCE_MULTIPLE, Manifest, TensorSpec

Array = NDArray[np.generic]
IntArray = NDArray[np.int64]


class Slot(NamedTuple):
    """A row, and the row's generation when the slot was acquired."""

    row: int
    generation: int


def _untouched(shape: Sequence[int], dtype: str) -> Array:
    """Returns an array of zeros that takes no memory until it is written to."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if sys.platform == "win32" or not num_bytes:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without huge pages refuses; NumPy requests them for its own arrays too
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.ndarray(shape, dtype, memory)


class _Tensor:
    """One state tensor of all slots: an array whose axis number `axis` counts rows."""

    def __init__(self, spec: TensorSpec, num_rows: int) -> None:
        self.name = spec.name
        self.axis = spec.shape.index("batch")
        shape = [num_rows if axis == "batch" else int(axis) for axis in spec.shape]
        self.values = _untouched(shape, spec.dtype)
        self._before = (slice(None),) * self.axis

    def at(self, rows: Any) -> tuple[Any, ...]:
        """Returns the index that selects `rows` along the batch axis."""
        return (*self._before, rows)


class Arena:
    """Holds state and context of up to `num_slots` sessions."""

    def __init__(self, manifest: Manifest, num_slots: int, first_values: Mapping[int, Array] | None = None) -> None:
        """first_values: see `Bundle.first_values`."""
        self.num_slots = num_slots
        self._first_values = dict(first_values or {})
        self._states = [_Tensor(state.input, num_slots + 1) for state in manifest.states]
        longest = manifest.encoder.max_source_length if manifest.encoder else 0
        self._source_capacity = -(-longest // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        self._contexts: list[Array] = []
        for context in manifest.contexts:
            inner = [int(axis) for axis in context.input.shape[2:]]
            shape = (num_slots + 1, self._source_capacity, *inner)
            self._contexts.append(_untouched(shape, context.input.dtype))
        self._source_lengths = np.zeros(num_slots + 1, dtype=np.int64)
        self._generations = np.zeros(num_slots + 1, dtype=np.int64)
        for place, value in self._first_values.items():  # warm-up runs the graphs on row 0
            state = self._states[place]
            state.values[state.at(0)] = value
        self._free: list[int] = []
        self._num_touched = 0
        self._buffers: dict[int, list[Array]] = {}
        self._kept: tuple[IntArray, IntArray, list[Array]] | None = None
        """Of the last batch: its rows with padding, its rows without padding, and its next state."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one slot in all arrays together."""
        arrays = [*(tensor.values for tensor in self._states), *self._contexts, self._source_lengths]
        return sum(array.nbytes for array in arrays) // (self.num_slots + 1)

    def acquire(self, given: Mapping[int, Array] | None = None) -> Slot | None:
        """Returns a slot with first values; None when all slots are in use.

        given: first values for this slot alone, without the batch axis, by index of the state tensor.
        """
        if self._free:
            row = self._free.pop()
            for state in self._states:
                state.values[state.at(row)] = 0
            for context in self._contexts:
                context[row, : self._source_lengths[row]] = 0
        elif self._num_touched < self.num_slots:
            self._num_touched += 1
            row = self._num_touched
        else:
            return None
        if self._first_values or given:
            for place, value in (self._first_values | dict(given or {})).items():
                state = self._states[place]
                state.values[state.at(row)] = value
        self._source_lengths[row] = 0
        return Slot(row, int(self._generations[row]))

    def release(self, slot: Slot) -> None:
        """Frees a slot. Raises ValueError when the slot was released before."""
        if self._generations[slot.row] != slot.generation:
            raise ValueError(f"slot {slot.row} of generation {slot.generation} was released before")
        self.flush()  # first, because the kept state may include this row, which can get a new owner
        self._generations[slot.row] += 1
        self._free.append(slot.row)

    def gather(self, rows: IntArray) -> list[Array]:
        """Copies the state of `rows` into batch order.

        rows: [B]; 0 for padding, whose state has no meaning. Returns one array for each state tensor, of the manifest's
        shape with batch = B. The arrays are read-only for the caller and valid until the next call with the same B,
        because the buffers are reused. Raises nothing: rows are checked when they are acquired.
        """
        if self._kept is not None:
            # most often `rows` is the same array, which needs no comparison of values
            if self._kept[0] is rows or self._kept[0].tobytes() == rows.tobytes():
                return self._kept[2]
            self.flush()
        buffers = self._buffers.get(len(rows))
        if buffers is None:
            shapes = [list(state.values.shape) for state in self._states]
            for shape, state in zip(shapes, self._states, strict=True):
                shape[state.axis] = len(rows)
            buffers = [np.empty(shape, state.values.dtype) for shape, state in zip(shapes, self._states, strict=True)]
            self._buffers[len(rows)] = buffers
        for state, buffer in zip(self._states, buffers, strict=True):
            # mode="clip" writes straight into `out`; the default mode copies through a buffer
            state.values.take(rows, axis=state.axis, out=buffer, mode="clip")
        return buffers

    def keep(self, rows: IntArray, count: int, values: list[Array]) -> None:
        """Stores the next state of a batch, without copying it. `flush` later scatters the first `count` rows.

        rows: [B] as they were gathered; the caller must not change the array any more.
        values: one [.., B, ..] array for each state tensor; the arena owns them from now on.
        """
        kept = self._kept
        if kept is not None and kept[0] is not rows and kept[0].tobytes() != rows.tobytes():
            self.flush()
        self._kept = (rows, rows[:count], values)

    def flush(self) -> None:
        """Writes the kept state of the last batch, if there is any, to the arrays."""
        if self._kept is not None:
            _, rows, values = self._kept
            self._kept = None
            self.scatter(rows, values)

    def scatter(
        self,
        rows: IntArray,
        values: list[Array],
        tensors: Sequence[int] | None = None,
        *,
        places: list[int] | None = None,
    ) -> None:
        """Writes the state of some rows to the arrays.

        rows: [B] distinct and not 0.
        values: one array for each state tensor, with at least B rows; the first B are used, or those at `places`.
        tensors: indices of the state tensors in `values`; None: all.
        places: [B] which rows of `values` to use; None: the first B.
        """
        self.flush()  # first: the kept state may be older state of the same rows
        states = self._states if tensors is None else [self._states[index] for index in tensors]
        of_batch = slice(len(rows)) if places is None else places
        for state, value in zip(states, values, strict=True):
            state.values[state.at(rows)] = value[state.at(of_batch)]

    def set_context(self, rows: IntArray, lengths: IntArray, values: list[Array]) -> None:
        """Stores the encoder's output as context. rows, lengths: [B]; values: one [B', S, ...] array for each context
        tensor, B' >= B.

        Positions at and after a row's length stay zero, whatever `values` contains there.
        """
        for context, value in zip(self._contexts, values, strict=True):
            for index, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
                context[row, :length] = value[index, :length]
        self._source_lengths[rows] = lengths

    def gather_context(self, rows: IntArray) -> list[Array]:
        """Returns the context of `rows` [B]: one [B, S, ...] array for each context tensor, zero where padded.

        S is the longest source of the rows, rounded up to a multiple of 8.
        """
        if not self._contexts:
            return []
        longest = int(self._source_lengths[rows].max())
        width = max(SOURCE_MULTIPLE, -(-longest // SOURCE_MULTIPLE) * SOURCE_MULTIPLE)
        # indexing, not `take`: `take` would first copy the whole view, because it is not contiguous
        return [context[rows, :width] for context in self._contexts]

    def source_lengths(self, rows: list[int]) -> list[int]:
        """Returns the source length of each of `rows`; 0 for a row without a source."""
        lengths: list[int] = self._source_lengths[rows].tolist()
        return lengths

    def read(self, rows: list[int]) -> list[tuple[list[Array], list[Array]]]:
        """Returns copies of the state and the context of each of `rows`.

        For each row: state arrays without the batch axis, and [S, ...] context arrays, S the length of its source.
        """
        self.flush()
        blocks = [state.values[state.at(rows)] for state in self._states]
        copies = []
        for place, row in enumerate(rows):
            states = [block[state.at(place)] for state, block in zip(self._states, blocks, strict=True)]
            length = int(self._source_lengths[row])
            copies.append((states, [context[row, :length].copy() for context in self._contexts]))
        return copies

    def write(self, row: int, states: list[Array], contexts: list[Array]) -> None:
        """Sets the state and context of a row to arrays of the shapes that `read` returns.

        Raises ValueError when a state array has another shape.
        """
        self.flush()
        length = len(contexts[0]) if contexts else 0
        for tensor, value in zip(self._states, states, strict=True):
            target = tensor.values[tensor.at(row)]
            if target.shape != value.shape:
                raise ValueError(f"{tensor.name} is {list(value.shape)}, expected {list(target.shape)}")
            tensor.values[tensor.at(row)] = value
        for context, value in zip(self._contexts, contexts, strict=True):
            context[row, :length] = value
            context[row, length : self._source_lengths[row]] = 0
        self._source_lengths[row] = length

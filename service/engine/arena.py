"""Slots: a session's row in the contiguous arrays that hold every session's state and context.

Owns the arrays and who has which row. Knows no session, no clock, no thread of its own.

Rules:
1. Slot 0 is nobody's: padded rows of a batch read it, and nothing is written to it once it has its first values.
2. A slot is zero when it is handed out, but for states with a first value of their own.
3. A slot carries the generation of its row. Releasing moves the row to the next one, so releasing twice, or
   using what was released, is an error and never somebody else's state.
4. The state of the batch that was run last is kept aside, as the graph gave it, until somebody asks for anything else:
   a batch of the same rows, as a lone session or a gateway's step batch makes again and again, is then neither gathered
   nor scattered.
5. The arrays are allocated whole at the start and left untouched: the operating system gives a page its memory
   when a session first writes to it, so room for a million sessions costs nothing until they come. They are asked of
   the operating system itself: in Envoy's process the allocator is Envoy's, which writes to all that it zeroes.

`acquire` is called by one thread and everything else by another: they meet only in the free list, whose append
and pop are atomic, and a row is never in the hands of both.

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
    """A row and the generation in which it was handed out."""

    row: int
    generation: int


def _untouched(shape: Sequence[int], dtype: str) -> Array:
    """Zeros that take no memory until they are written to."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if sys.platform == "win32" or not num_bytes:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # of a kernel without them; NumPy asks for them too
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.ndarray(shape, dtype, memory)


class _Tensor:
    """One state tensor of every slot: an array whose `axis` counts rows."""

    def __init__(self, spec: TensorSpec, num_rows: int) -> None:
        self.name = spec.name
        self.axis = spec.shape.index("batch")
        shape = [num_rows if axis == "batch" else int(axis) for axis in spec.shape]
        self.values = _untouched(shape, spec.dtype)
        self._before = (slice(None),) * self.axis

    def at(self, rows: Any) -> tuple[Any, ...]:
        """The index of `rows` along the batch axis."""
        return (*self._before, rows)


class Arena:
    """State and context of up to `num_slots` sessions."""

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
        for place, value in self._first_values.items():  # graphs are warmed up on the row that is nobody's
            state = self._states[place]
            state.values[state.at(0)] = value
        self._free: list[int] = []
        self._num_touched = 0
        self._buffers: dict[int, list[Array]] = {}
        self._kept: tuple[IntArray, IntArray, list[Array]] | None = None
        """The rows of the batch that was run last, with padding and without, and its state."""

    @property
    def row_bytes(self) -> int:
        """What the arrays have for one slot."""
        arrays = [*(tensor.values for tensor in self._states), *self._contexts, self._source_lengths]
        return sum(array.nbytes for array in arrays) // (self.num_slots + 1)

    @property
    def num_used(self) -> int:
        """Slots that are handed out."""
        return self._num_touched - len(self._free)

    def acquire(self, given: Mapping[int, Array] | None = None) -> Slot | None:
        """A slot with first values, or None when all are taken. given: those that are this slot's own, without the
        batch axis, by the state's place."""
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
        """Takes a slot back. Raises ValueError when it is not the row's present generation: released before."""
        if self._generations[slot.row] != slot.generation:
            raise ValueError(f"slot {slot.row} of generation {slot.generation} was released before")
        self.flush()  # before the row is somebody else's
        self._generations[slot.row] += 1
        self._free.append(slot.row)

    def gather(self, rows: IntArray) -> list[Array]:
        """Copies the state of `rows` into batch order.

        rows: [B]; 0 for padding, whose state means nothing. Returns one array a state tensor, of the manifest's shape
        with batch = B, valid until the next call with the same B (the buffers are reused), and not to be written to.
        Raises nothing: rows are checked where they are handed out.
        """
        if self._kept is not None:
            # most often it is the very array: then nothing need be compared
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
        """Takes the state that a batch has now: as `scatter` of the first `count` rows, when it is asked for.

        rows: [B] as they were gathered, not changed from now on;
        values: one [.., B, ..] array a state tensor, the arena's from now on.
        """
        kept = self._kept
        if kept is not None and kept[0] is not rows and kept[0].tobytes() != rows.tobytes():
            self.flush()
        self._kept = (rows, rows[:count], values)

    def flush(self) -> None:
        """Writes what was kept aside to the arrays."""
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
        """Writes state back.

        rows: [B] distinct and not 0; values: one array a state tensor, of B rows or more, of which the first B
        count, or those at `places`, [B]; tensors: which state tensors they are, when not all.
        """
        self.flush()  # which may be older state of the same rows
        states = self._states if tensors is None else [self._states[index] for index in tensors]
        of_batch = slice(len(rows)) if places is None else places
        for state, value in zip(states, values, strict=True):
            state.values[state.at(rows)] = value[state.at(of_batch)]

    def set_context(self, rows: IntArray, lengths: IntArray, values: list[Array]) -> None:
        """Stores what the encoder gave. rows, lengths: [B]; values: one [B', S, ...] array a context tensor, B' >= B.

        Positions from a row's length on are left zero, whatever the encoder gave there.
        """
        for context, value in zip(self._contexts, values, strict=True):
            for index, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
                context[row, :length] = value[index, :length]
        self._source_lengths[rows] = lengths

    def gather_context(self, rows: IntArray) -> list[Array]:
        """The context of `rows` [B]: one [B, S, ...] array a context tensor, zero where padded.

        S is the longest of them, rounded up to a multiple of 8.
        """
        if not self._contexts:
            return []
        longest = int(self._source_lengths[rows].max())
        width = max(SOURCE_MULTIPLE, -(-longest // SOURCE_MULTIPLE) * SOURCE_MULTIPLE)
        # indexing, not `take`: that would copy the whole of a view that is not contiguous before it takes from it
        return [context[rows, :width] for context in self._contexts]

    def source_lengths(self, rows: list[int]) -> list[int]:
        """How long the source of each of `rows` is; 0 without one."""
        lengths: list[int] = self._source_lengths[rows].tolist()
        return lengths

    def read(self, rows: list[int]) -> list[tuple[list[Array], list[Array]]]:
        """Copies of the state and of the context of each of `rows`: arrays without the batch axis, and [S, ...] arrays
        as long as the row's source."""
        self.flush()
        blocks = [state.values[state.at(rows)] for state in self._states]
        copies = []
        for place, row in enumerate(rows):
            states = [block[state.at(place)] for state, block in zip(self._states, blocks, strict=True)]
            length = int(self._source_lengths[row])
            copies.append((states, [context[row, :length].copy() for context in self._contexts]))
        return copies

    def write(self, row: int, states: list[Array], contexts: list[Array]) -> None:
        """Sets the state and the context of a row, as `read` gave them. Raises ValueError for other shapes."""
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

"""A slot has one owner, is zero at first, and keeps exactly what is written to it."""

from __future__ import annotations

import copy
import resource
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from service.engine.arena import Arena, Array, Slot
from service.repository.manifest import SOURCE_MULTIPLE, Manifest, StateSpec
from tests import domain

STATES = (
    domain.state("hidden", (2, "batch", 3)),
    domain.state("cell", ("batch", 4)),
    domain.state("steps", (1, 2, "batch"), dtype="int64"),
    domain.state("seen", ("batch",), dtype="bool"),
)
CONTEXTS = (domain.context("memory", (3,)), domain.context("mask", (), dtype="bool"))
SEEDS = st.integers(0, 2**32 - 1)


def random_array(seed: int, shape: list[int], dtype: str) -> Array:
    values = np.random.default_rng(seed).integers(-1000, 1000, shape)
    return values % 2 == 0 if dtype == "bool" else values.astype(dtype)


def state_arrays(states: tuple[StateSpec, ...], num_rows: int, seed: int) -> list[Array]:
    """Returns one array for each state tensor, with `num_rows` rows."""
    shapes = [[num_rows if axis == "batch" else int(axis) for axis in state.input.shape] for state in states]
    specs = zip(shapes, states, strict=True)
    return [random_array(seed + index, shape, state.input.dtype) for index, (shape, state) in enumerate(specs)]


def row_of(state: StateSpec, values: Array, index: int) -> Array:
    return np.asarray(values.take(index, axis=state.input.shape.index("batch")))


def same(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def int_array(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@dataclass
class Owned:
    """The expected content of a slot. contexts: one [S, ...] array for each context tensor, S the length of its
    source."""

    states: list[Array]
    contexts: list[Array]

    @property
    def length(self) -> int:
        return len(self.contexts[0])


class ArenaMachine(RuleBasedStateMachine):
    """Acquires, writes, reads and releases slots in any order, and compares them with a dictionary of the expected
    content."""

    NUM_SLOTS = 5

    @initialize()
    def begin(self) -> None:
        self.arena = Arena(domain.manifest(states=STATES, contexts=CONTEXTS, has_encoder=True), self.NUM_SLOTS)
        self.owned: dict[Slot, Owned] = {}
        self.released: list[Slot] = []
        self.last: tuple[list[Slot], int] | None = None

    @rule()
    def acquire(self) -> None:
        slot = self.arena.acquire()
        if len(self.owned) == self.NUM_SLOTS:
            assert slot is None, "all are taken"
            return
        assert slot is not None
        assert 1 <= slot.row <= self.NUM_SLOTS
        assert slot.row not in {other.row for other in self.owned}, "a slot has one owner"
        assert slot not in self.released, "nobody gets what somebody else may still hold"
        zeros = [np.zeros_like(row_of(s, v, 0)) for s, v in zip(STATES, state_arrays(STATES, 1, 0), strict=True)]
        no_context = [np.zeros((0, 3), np.float32), np.zeros(0, np.bool_)]
        self.owned[slot] = Owned(zeros, no_context)
        wide = self.arena.gather_context(int_array([0, slot.row]))
        assert not any(values[1].any() for values in wide), "no context of an earlier owner is left"

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.owned)))
        self.arena.release(slot)
        del self.owned[slot]
        self.released.append(slot)

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def release_again(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.released))
        with pytest.raises(ValueError, match=f"slot {slot.row} of generation {slot.generation} was released before"):
            self.arena.release(slot)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), seed=SEEDS, surplus=st.integers(0, 3), only_some=st.booleans())
    def scatter(self, data: st.DataObject, seed: int, surplus: int, only_some: bool) -> None:
        """Rows of `values` after the named ones contain garbage, as the padded rows of a batch do."""
        slots = data.draw(st.permutations(list(self.owned)))[: data.draw(st.integers(1, len(self.owned)))]
        written = data.draw(st.permutations(range(len(STATES))))[:2] if only_some else list(range(len(STATES)))
        values = state_arrays(STATES, len(slots) + surplus, seed)
        self.arena.scatter(
            int_array([slot.row for slot in slots]),
            [values[tensor] for tensor in written],
            written if only_some else None,
        )
        for index, slot in enumerate(slots):
            for tensor in written:
                self.owned[slot].states[tensor] = row_of(STATES[tensor], values[tensor], index)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), seed=SEEDS, padding=st.integers(0, 2), again=st.booleans())
    def keep(self, data: st.DataObject, seed: int, padding: int, again: bool) -> None:
        """Keeps state as the run of a batch does; often it repeats the last batch."""
        slots = data.draw(st.permutations(list(self.owned)))[: data.draw(st.integers(1, len(self.owned)))]
        if again and self.last and set(self.last[0]) <= set(self.owned):
            slots, padding = self.last
        self.last = slots, padding
        rows = int_array([slot.row for slot in slots] + [0] * padding)
        self.arena.gather(rows)
        values = state_arrays(STATES, len(rows), seed)
        self.arena.keep(rows, len(slots), [value.copy() for value in values])
        for index, slot in enumerate(slots):
            for tensor, value in enumerate(values):
                self.owned[slot].states[tensor] = row_of(STATES[tensor], value, index)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), seed=SEEDS, surplus=st.integers(0, 2))
    def set_context(self, data: st.DataObject, seed: int, surplus: int) -> None:
        """Sets a context as after an encoder's run: once per session, with garbage where padded."""
        fresh = [slot for slot, owned in self.owned.items() if not owned.length]
        slots = fresh[: data.draw(st.integers(1, 3))]
        if not slots:
            return
        lengths = [data.draw(st.integers(1, domain.MAX_SOURCE_LENGTH)) for _ in slots]
        width = -(-max(lengths) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        values = [
            random_array(seed, [len(slots) + surplus, width, 3], "float32"),
            random_array(seed, [len(slots) + surplus, width], "bool"),
        ]
        self.arena.set_context(int_array([slot.row for slot in slots]), int_array(lengths), values)
        for index, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            self.owned[slot].contexts = [value[index, :length].copy() for value in values]

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def gather_padded(self, data: st.DataObject) -> None:
        """Gathers a batch in any order, padded with row 0."""
        slots = data.draw(st.permutations(list(self.owned)))[: data.draw(st.integers(1, len(self.owned)))]
        rows = int_array([slot.row for slot in slots] + [0] * data.draw(st.integers(0, 3)))
        states, contexts = self.arena.gather(rows), self.arena.gather_context(rows)
        longest = max(self.owned[slot].length for slot in slots)
        width = max(SOURCE_MULTIPLE, -(-longest // SOURCE_MULTIPLE) * SOURCE_MULTIPLE)
        assert [value.shape for value in contexts] == [(len(rows), width, 3), (len(rows), width)]
        for index, slot in enumerate(slots):
            owned = self.owned[slot]
            for spec, value, expected in zip(STATES, states, owned.states, strict=True):
                assert same(row_of(spec, value, index), expected)
            for value, expected in zip(contexts, owned.contexts, strict=True):
                assert same(value[index, : owned.length], expected)
                assert not value[index, owned.length :].any(), "padding is zero"
        for index in range(len(slots), len(rows)):
            assert not any(value[index].any() for value in contexts)

    @invariant()
    def everyone_has_what_is_theirs(self) -> None:
        """An operation on one slot changes no other slot."""
        if not hasattr(self, "arena"):
            return
        slots = list(self.owned)
        # a copy, because `flush` would change the arena, which may still keep a batch's state
        arena = copy.deepcopy(self.arena)
        arena.flush()
        states = arena.gather(int_array([slot.row for slot in slots] + [0]))
        for index, slot in enumerate(slots):
            for spec, value, expected in zip(STATES, states, self.owned[slot].states, strict=True):
                assert same(row_of(spec, value, index), expected)
        assert not any(row_of(spec, value, len(slots)).any() for spec, value in zip(STATES, states, strict=True))


ArenaMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # the phase takes longer than all others
)
TestArena = ArenaMachine.TestCase


@given(
    axis=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "int64", "bool"]),
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=6, unique=True),
    seed=SEEDS,
)
@settings(max_examples=30, deadline=None)
def test_what_was_scattered_is_gathered_bit_for_bit(axis: int, dtype: Any, rows: list[int], seed: int) -> None:
    """Holds for any batch axis and any order of rows."""
    shape: list[Any] = [2, 3, 4]
    shape.insert(axis, "batch")
    states = (domain.state("only", tuple(shape), dtype=dtype),)
    arena = Arena(domain.manifest(states=states), num_slots=6)
    for _ in range(6):
        arena.acquire()
    (values,) = state_arrays(states, len(rows), seed)
    arena.scatter(int_array(rows), [values])
    (gathered,) = arena.gather(int_array(rows))
    assert gathered.shape == values.shape
    assert same(gathered, values)
    (back,) = arena.gather(int_array(rows[::-1]))
    assert same(back, np.flip(values, axis))


def test_gathering_gives_copies() -> None:
    """A write into a gathered batch does not change a session's state."""
    arena = Arena(small(), num_slots=2)
    slot = arena.acquire()
    assert slot is not None
    rows = int_array([slot.row])
    arena.gather(rows)[0][:] = 7
    assert not arena.gather(rows)[0].any()


def test_a_model_without_contexts_has_none_to_gather() -> None:
    assert Arena(small(), num_slots=1).gather_context(int_array([0])) == []


def test_a_row_is_zero_for_its_next_owner() -> None:
    arena = Arena(domain.manifest(contexts=CONTEXTS, has_encoder=True), num_slots=1)
    first = arena.acquire()
    assert first is not None
    rows = int_array([first.row])
    nan = np.full((1, 1, 2), np.nan, np.float32)
    arena.scatter(rows, [nan, nan])
    arena.set_context(rows, int_array([20]), [np.full((1, 24, 3), np.nan, np.float32), np.ones((1, 24), np.bool_)])
    arena.release(first)
    second = arena.acquire()
    assert second == Slot(first.row, first.generation + 1)
    assert not any(value.any() for value in arena.gather(rows))
    memory, mask = arena.gather_context(rows)
    assert memory.shape == (1, 8, 3), "the earlier owner's length is forgotten"
    arena.set_context(rows, int_array([17]), [np.zeros((1, 24, 3), np.float32), np.zeros((1, 24), np.bool_)])
    memory, mask = arena.gather_context(rows)
    assert memory.shape == (1, 24, 3)
    assert not memory.any()
    assert not mask.any()


def test_a_double_release_never_gives_one_row_to_two() -> None:
    arena = Arena(small(), num_slots=3)
    slot = arena.acquire()
    assert slot is not None
    arena.release(slot)
    with pytest.raises(ValueError, match="slot 1 of generation 0 was released before"):
        arena.release(slot)
    owners = [arena.acquire() for _ in range(4)]
    assert [owner.row for owner in owners if owner] == [1, 2, 3]
    assert owners[3] is None


def test_a_stale_slot_cannot_release_its_rows_next_owner() -> None:
    arena = Arena(small(), num_slots=1)
    first = arena.acquire()
    assert first is not None
    arena.release(first)
    second = arena.acquire()
    assert second is not None
    assert second.row == first.row
    with pytest.raises(ValueError, match="was released before"):
        arena.release(first)
    assert arena.acquire() is None
    arena.release(second)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes, and pages come lazily, on Linux")
def test_unused_slots_take_no_memory_in_the_arena() -> None:
    """The arena has half a gigabyte of slots, of which three are used."""
    states = (domain.state("hidden", (1, "batch", 1024)),)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arena = Arena(domain.manifest(states=states), num_slots=128 * 1024)
    for _ in range(3):
        arena.acquire()
    arena.scatter(int_array([1, 2, 3]), [np.ones((1, 3, 1024), np.float32)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def small() -> Manifest:
    return domain.manifest(states=(domain.state("hidden"),))

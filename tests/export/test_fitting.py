"""The exporter finds how to call a module by calling it. A module that cannot be served is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from export.errors import BatchError, ExportError
from export.fitting import Call, Fitted, fit
from export.fitting_encoder import advised
from export.fitting_states import check_states
from export.packing import unpacked
from export.returned import Expected

READ, SIZE, GIVEN = 4, 6, 2
LSTM = {"h": (1, "batch", SIZE), "c": (1, "batch", SIZE)}
GRU: dict[str, tuple[int | str, ...]] = {"h": (1, "batch", SIZE)}
CELLS = {"h": ("batch", SIZE), "c": ("batch", SIZE)}


class Answer(NamedTuple):
    values: Tensor
    state: tuple[Tensor, Tensor]


class Base(nn.Module):
    """The layers that the cases below share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(READ, SIZE, batch_first=True)
        self.late = nn.LSTM(READ, SIZE)
        self.gru = nn.GRU(READ, SIZE, batch_first=True)
        self.cell = nn.LSTMCell(READ, SIZE)
        self.both = nn.GRU(READ, SIZE, batch_first=True, bidirectional=True)
        self.last = nn.Linear(SIZE, GIVEN)
        self.wide = nn.Linear(2 * SIZE, GIVEN)


class Flat(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.last(y), h, c


class Together(Base):
    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> Answer:
        y, hidden = self.lstm(x, hidden)
        return Answer(self.last(y), hidden)


class InDict(Base):
    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> dict[str, Any]:
        y, hidden = self.lstm(x, hidden)
        return {"values": self.last(y), "hidden": hidden}


class StepsFirst(Base):
    """Its outputs are [T * B, N], as in the language models of tutorials."""

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        y, hidden = self.late(x, hidden)
        return self.last(y).view(-1, GIVEN), hidden


class Loop(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for at in range(x.shape[1]):
            h, c = self.cell(x[:, at], (h, c))
            outputs.append(self.last(h))
        return torch.stack(outputs, 1), h, c


class OneVector(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        h, c = self.cell(x, (h, c))
        return self.last(h), h, c


class LastOnly(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(y[:, -1]), h


class WithAttention(Base):
    """Its last output is the weights of its attention."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(y), h, torch.softmax(y, -1)


class Packed(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (x != 0).any(-1).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, h = self.gru(packed, h)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return self.last(y), h


class AsksForLengths(Base):
    def forward(self, x: Tensor, h: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert lengths.shape == x.shape[:1]
        y, h = self.gru(x, h)
        return self.last(y), h


class Backwards(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.both(x, h)
        return self.wide(y), h


class TwoHeads(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(y), y.mean(-1, keepdim=True), h


class Doubled(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x.double(), h.double())
        return self.last(y), h


class Stateless(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.gru(x)[0])
        return y


class Swapped(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        h, c = self.cell(x[:, 0], (h, c))
        return self.last(h).unsqueeze(1), c, h


class Random(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(nn.functional.dropout(y, 0.5, training=True)), h


class NoNumbers(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(y) * float("nan"), h


class Untold(Base):
    def forward(self, x: Tensor, h: Tensor, g: Tensor | None = None) -> tuple[Tensor, ...]:
        y, h = self.gru(x, h)
        kept = y.mean(1) + (0.0 if g is None else g)
        return self.last(y + kept.unsqueeze(1)), h, kept


class FedBack(Base):
    """Besides the pair of an LSTM's states, an attention vector is fed back."""

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor], fed: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        y, hidden = self.lstm(x + fed[:, :READ].unsqueeze(1), hidden)
        return self.last(y), hidden, y[:, -1]


class MixesRows(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.last(y - y.mean(0, keepdim=True)), h


def found(make: Callable[[], nn.Module], states: Any, *, one_step: bool = False) -> tuple[Call, list[str], Fitted]:
    expected = Expected(GIVEN, states, {}, None, READ)
    module = make().eval()
    with unpacked():
        call, notes = fit(module, expected, one_step=one_step)
    return call, notes, Fitted(module, call, expected)


@pytest.mark.parametrize(
    ("make", "states", "layout", "nesting"),
    [
        (Flat, LSTM, "rows first", "one by one"),
        (Together, LSTM, "rows first", "together"),
        (InDict, LSTM, "rows first", "together"),
        (StepsFirst, LSTM, "steps first", "together"),
        (Loop, CELLS, "rows first", "one by one"),
        (OneVector, CELLS, "one row of steps", "one by one"),
        (LastOnly, GRU, "one step", "one by one"),
        (WithAttention, GRU, "rows first", "one by one"),
        (Packed, GRU, "rows first", "one by one"),
        (AsksForLengths, GRU, "rows first", "one by one"),
    ],
)
def test_it_is_found_how_a_module_is_called(
    make: Callable[[], nn.Module], states: Any, layout: str, nesting: str
) -> None:
    """Called in this way, the module gives the results of single steps."""
    call, _, module = found(make, states)
    assert (call.layout, call.nesting) == (layout, nesting)
    inputs = torch.randn(2, 4, READ)
    first = [torch.zeros(*(2 if axis == "batch" else axis for axis in shape)) for shape in states.values()]
    carried, outputs = list(first), []
    with torch.no_grad(), unpacked():
        for at in range(4):
            output, *carried = module(inputs[:, at : at + 1], *carried)
            outputs.append(output)
        assert torch.cat(outputs, 1).shape == (2, 4, GIVEN)
        if not call.is_one_step:
            whole, *ends = module(inputs, *first)
            torch.testing.assert_close(whole, torch.cat(outputs, 1))
            torch.testing.assert_close(ends, carried)


def test_parts_that_are_not_served_are_reported() -> None:
    assert found(WithAttention, GRU)[1] == ["tensor 2 of what it returns, [3, 5, 6], is not served"]
    assert found(LastOnly, GRU)[1] == ["it returns the output of one step only, so it is run one step at a time"]
    assert found(OneVector, CELLS)[1] == ["it takes one step, so it is run one step at a time"]
    assert found(Loop, CELLS, one_step=True)[0].is_one_step
    fed = found(FedBack, {**LSTM, "fed": ("batch", SIZE)}, one_step=True)[0]
    assert (fed.layout, fed.nesting) == ("one step", "a pair first")


@pytest.mark.parametrize(
    ("make", "states", "problem"),
    [
        (
            Backwards,
            {"h": (2, "batch", SIZE)},
            "Backwards: the output differs by up to",
        ),
        (TwoHeads, GRU, "TwoHeads returned 3 tensors, but 2 were expected: outputs [3, 5, 2] and h [1, 3, 6]"),
        (Doubled, GRU, "Doubled computes in float64, but float32 is served: remove .double() from its forward"),
        (Stateless, GRU, "of Stateless cannot be called with inputs and the states h: make forward take them"),
        (Random, GRU, "Random returns different values for equal inputs: it draws random numbers"),
        (NoNumbers, GRU, "NoNumbers returns NaN for finite inputs"),
        (
            MixesRows,
            GRU,
            "MixesRows returns other values for a row in a batch than for the row alone",
        ),
        (
            Flat,
            {"h": (1, "batch", 5), "c": (1, "batch", 5)},
            "Flat cannot be called with 3 rows, and states h",
        ),
        (Flat, {"c": (1, "batch", SIZE)}, "cannot be called with inputs and the states c"),
    ],
)
def test_a_module_that_cannot_be_served_is_refused_in_one_sentence(
    make: Callable[[], nn.Module], states: Any, problem: str
) -> None:
    with pytest.raises(ExportError) as refusal:
        found(make, states)
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("error", "is_advised"), [(BatchError("wrong"), True), (ExportError("a batch of 1"), False)])
def test_a_mask_is_advised_only_if_other_rows_change_a_row(error: ExportError, is_advised: bool) -> None:
    """A row that is wrong alone has another cause than padding."""
    found = str(advised({"memory": ("batch", "source", SIZE)}, error))
    assert ("name a mask among the contexts" in found) == is_advised


def test_packing_is_restored_afterwards() -> None:
    pack = nn.utils.rnn.pack_padded_sequence
    with unpacked():
        assert nn.utils.rnn.pack_padded_sequence is not pack
    assert nn.utils.rnn.pack_padded_sequence is pack


def test_states_in_another_order_and_states_without_a_name_are_refused() -> None:
    """If a module takes one step at a time, no comparison can show these mistakes."""
    call, _, _ = found(Swapped, CELLS)
    with pytest.raises(ExportError, match="Swapped returns the next h where the next c"):
        check_states(Swapped().eval(), call, Expected(GIVEN, CELLS, {}, None, READ))
    call, notes, _ = found(Untold, GRU, one_step=True)
    assert notes
    with pytest.raises(ExportError, match="Untold takes and returns g, which is not among the states"):
        check_states(Untold().eval(), call, Expected(GIVEN, GRU, {}, None, READ))

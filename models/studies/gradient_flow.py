"""Shows vanishing gradients: how the gradient of a late loss reaches early inputs, and the effect on learning.

    python -m models.studies.gradient_flow --to docs/pictures

Writes two pictures, `gradient_flow.png` and `long_range_recall.png`, and their figures as JSON to standard output.

1. Cells with random weights read noise. The loss depends on the last output only. The norm of its gradient with respect
   to an earlier input shows how much the cell could learn from that input (Hochreiter 1991; Bengio, Simard, Frasconi
   1994; Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013).
2. A recall task: the first token of a sequence is one of several symbols, noise follows, and after the last token the
   model must predict the first one (a form of Hochreiter and Schmidhuber's task 2a, 1997). Cells of equal size learn
   it, or fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from typer import Option

from models import command_line
from models.cells import Cell, CoupledLSTMCell, LSTMCell
from models.recurrent import CellKind, RecurrentLayer

HIDDEN_SIZE = 64
NUM_SYMBOLS = 8
CHANCE = 1 / NUM_SYMBOLS


@dataclass(frozen=True, slots=True)
class Subject:
    """A cell to measure.

    keep_bias: added to the initial bias of the gate that keeps the past: the forget gate (Gers et al. 1999; Jozefowicz,
    Zaremba, Sutskever 2015), or the GRU's update gate.
    """

    name: str
    kind: CellKind
    keep_bias: float = 0.0

    def layer(self, input_size: int) -> RecurrentLayer:
        """Returns one layer with PyTorch's initial weights, plus `keep_bias`."""
        layer = RecurrentLayer(
            self.kind, input_size, HIDDEN_SIZE, projection_size=32 if self.kind == "lstm-projected" else 0
        )
        if self.keep_bias:
            _open_gate(layer, self.keep_bias)
        return layer


FLOW = (
    Subject("vanilla RNN", "rnn"),
    Subject("GRU", "gru"),
    Subject("GRU, update bias 3", "gru", 3.0),
    Subject("LSTM", "lstm"),
    Subject("LSTM, forget bias 3", "lstm", 3.0),
    Subject("peephole LSTM, forget bias 3", "lstm-peephole", 3.0),
    Subject("coupled LSTM, forget bias 3", "lstm-coupled", 3.0),
    Subject("projected LSTM, forget bias 3", "lstm-projected", 3.0),
    Subject("LSTM of 1997", "lstm-1997"),
)
RECALL = (
    Subject("vanilla RNN", "rnn"),
    Subject("GRU", "gru"),
    Subject("GRU, update bias 3", "gru", 3.0),
    Subject("LSTM", "lstm"),
    Subject("LSTM, forget bias 3", "lstm", 3.0),
    Subject("LSTM of 1997", "lstm-1997"),
)


def gradient_norms(subject: Subject, *, num_steps: int, num_rows: int, seed: int) -> Tensor:
    """Returns [num_steps] gradient norms of a loss on the last output with respect to each input, the last input first.

    Each is the mean over rows, relative to that of the last input.
    """
    torch.manual_seed(seed)
    layer = subject.layer(HIDDEN_SIZE)
    inputs = torch.randn(num_steps, num_rows, HIDDEN_SIZE, requires_grad=True)
    outputs, *_ = layer(inputs, None, *_zeros(layer, num_rows))
    direction = torch.randn(num_rows, outputs.shape[-1])
    (gradient,) = torch.autograd.grad((outputs[-1] * direction).sum(), inputs)
    norms: Tensor = gradient.norm(dim=-1).mean(dim=1).flip(0)  # [num_steps]
    return norms / norms[0]


class Recaller(nn.Module):
    """A layer over one-hot symbols, and a readout of its last output."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.layer = subject.layer(2 * NUM_SYMBOLS)
        self.readout = nn.Linear(self.layer.output_size, NUM_SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        """Returns logits [B, NUM_SYMBOLS]. symbols: [T, B]."""
        inputs = one_hot(symbols, 2 * NUM_SYMBOLS).float()
        outputs, *_ = self.layer(inputs, None, *_zeros(self.layer, symbols.shape[1]))
        logits: Tensor = self.readout(outputs[-1])
        return logits


def learn_recall(subject: Subject, *, lag: int, num_updates: int, batch_size: int, seed: int) -> list[float]:
    """Trains on the recall task. Returns the accuracy on new sequences before training and after each tenth of it."""
    torch.manual_seed(seed)
    model = Recaller(subject)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    accuracies = [_accuracy(model, lag)]
    for update in range(1, num_updates + 1):
        symbols = _sequences(lag, batch_size)
        loss = cross_entropy(model(symbols), symbols[0])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % max(1, num_updates // 10) == 0:
            accuracies.append(_accuracy(model, lag))
    return accuracies


def draw_flow(norms: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws the gradient norms against the number of steps back."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, values in norms.items():
        axis.semilogy(range(len(values)), [max(value, 1e-20) for value in values], label=name)
    axis.set(
        title="What is left of the gradient of the last output, by an input so many steps before",
        xlabel="steps back",
        ylabel="norm, relative to the last input's",
        ylim=(1e-16, 10),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)


def draw_recall(accuracies: Mapping[str, Sequence[float]], num_updates: int, lag: int, path: Path) -> None:
    """Draws the accuracy on the recall task against the number of updates."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for name, values in accuracies.items():
        updates = [num_updates * index / (len(values) - 1) for index in range(len(values))]
        axis.plot(updates, [100 * value for value in values], marker=".", label=name)
    axis.axhline(100 * CHANCE, color="grey", linestyle=":", label="chance")
    axis.set(
        title=f"Telling the first of {lag + 1} symbols after the last",
        xlabel="updates",
        ylabel="right (%)",
        ylim=(0, 105),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)


def _zeros(layer: RecurrentLayer, num_rows: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(1, num_rows, size) for size in layer.state_sizes)


def _open_gate(layer: RecurrentLayer, bias: float) -> None:
    with torch.no_grad():
        if layer.cells:
            for cell in layer.cells:
                _open_cell(cell, bias)
        else:
            # PyTorch stacks the gates as i, f, g, o (LSTM) and r, z, n (GRU)
            gate = slice(layer.hidden_size, 2 * layer.hidden_size)
            getattr(layer.rnn, "bias_ih_l0")[gate] += bias  # noqa: B009  # mypy does not know this parameter


def _open_cell(cell: nn.Module, bias: float) -> None:
    if isinstance(cell, CoupledLSTMCell):
        cell.input_gate.bias.sub_(bias)  # f = 1 - i
    elif isinstance(cell, LSTMCell):
        cell.forget_gate.bias.add_(bias)
    elif isinstance(cell, Cell):
        raise TypeError(f"{type(cell).__name__} has no forget gate")


def _sequences(lag: int, num_rows: int) -> Tensor:
    """Returns [lag + 1, num_rows]: a symbol of the first half to remember, then noise of the second half."""
    noise = torch.randint(NUM_SYMBOLS, 2 * NUM_SYMBOLS, (lag, num_rows))
    return torch.cat([torch.randint(NUM_SYMBOLS, (1, num_rows)), noise])


@torch.no_grad()
def _accuracy(model: Recaller, lag: int) -> float:
    symbols = _sequences(lag, 256)
    return float((model(symbols).argmax(dim=-1) == symbols[0]).float().mean())


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.studies.gradient_flow", "", study=_study)


def _study(
    to: Annotated[Path, Option(metavar="FOLDER", help="The folder of the pictures.")] = Path(),
    steps: Annotated[int, Option(metavar="N", help="Steps that the gradient flows back.")] = 100,
    lag: Annotated[int, Option(metavar="N", help="Symbols between the first and its recall.")] = 100,
    updates: Annotated[int, Option(metavar="N", help="Updates of the recall task.")] = 600,
    seed: command_line.Seed = 0,
) -> None:
    """Shows vanishing gradients: how the gradient of a late loss reaches early inputs, and the effect on learning."""
    norms = {
        subject.name: gradient_norms(subject, num_steps=steps + 1, num_rows=16, seed=seed).tolist() for subject in FLOW
    }
    accuracies = {
        subject.name: learn_recall(subject, lag=lag, num_updates=updates, batch_size=64, seed=seed)
        for subject in RECALL
    }
    to.mkdir(parents=True, exist_ok=True)
    draw_flow(norms, to / "gradient_flow.png")
    draw_recall(accuracies, updates, lag, to / "long_range_recall.png")
    results = {
        "gradient_left": {name: values[-1] for name, values in norms.items()},
        "steps": steps,
        "recall": accuracies,
        "lag": lag,
        "chance": CHANCE,
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

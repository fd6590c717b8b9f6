"""Modules of others made ready: their `nn.RNN`, `nn.LSTM` and `nn.GRU` become layers that export as one operator each.

PyTorch's modules know no lengths, so a chunk of a ragged batch would run on into its padding. The layers that take
their place are told the lengths from outside: `WithLengths` notes them when it is called, and they look there. Weights,
layers, directions, `batch_first` and a bias that is off are as they were; dropout is none, as in evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.errors import ExportError
from models.recurrent import CellKind, RecurrentLayer


class Lengths:
    """The lengths of the rows that are run now. Of one thread."""

    def __init__(self) -> None:
        self.now: Tensor | None = None


class TakesLengths(nn.Module):
    """A module that may ask for the lengths of the rows that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Lengths()

    def lengths_of(self, inputs: Tensor) -> Tensor:
        """[B] of inputs [B, T, ...]: those that are run now, or all T."""
        if self.told.now is not None:
            return self.told.now
        return torch.full((inputs.shape[0],), inputs.shape[1], dtype=torch.int64)


class WithLengths(nn.Module):
    """A module called as `module(inputs, *carried)`, made one that is called as `(inputs, lengths, *carried)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._lengths = Lengths()
        self.module = _replaced(copy.deepcopy(module), self._lengths)
        for one in self.module.modules():
            if isinstance(one, TakesLengths):
                one.told = self._lengths

    def forward(self, inputs: Tensor, lengths: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """inputs: [B, T] or [B, T, F]; lengths: [B]. Returns what the module does."""
        self._lengths.now = lengths
        try:
            return _as_tuple(self.module(inputs, *carried))
        finally:
            self._lengths.now = None


class OneStep(nn.Module):
    """A module called with one step of each row, `module(inputs, *carried)`, as it is exported: `(inputs, *carried)`,
    inputs [B, 1] or [B, 1, F]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = _replaced(copy.deepcopy(module), Lengths())

    def forward(self, inputs: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Returns what the module does."""
        return _as_tuple(self.module(inputs, *carried))


class StepByStep(nn.Module):
    """A module that takes one step of each row, run over several, each row alone: what its exported graph is held to.

    carried_axes: of each argument after the first, the axis that counts rows, of which the first `num_states` are
    states.
    """

    def __init__(self, module: nn.Module, *, carried_axes: Sequence[int], num_states: int) -> None:
        super().__init__()
        self.module = module
        self._carried_axes = carried_axes
        self._num_states = num_states

    def forward(self, inputs: Tensor, lengths: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """As `WithLengths.forward`; zero past a row's length."""
        rows = []
        for row, length in enumerate(lengths.tolist()):
            given = [tensor.narrow(axis, row, 1) for tensor, axis in zip(carried, self._carried_axes, strict=True)]
            outputs = []
            for at in range(length):
                output, *states = _as_tuple(self.module(inputs[row : row + 1, at : at + 1], *given))
                outputs.append(output)
                given[: self._num_states] = states
            rows.append([_padded(torch.cat(outputs, dim=1), 1, inputs.shape[1]), *given[: self._num_states]])
        axes = [0, *self._carried_axes[: self._num_states]]
        return tuple(torch.cat(column, dim=axis) for column, axis in zip(zip(*rows, strict=True), axes, strict=True))


class RowByRow(nn.Module):
    """What a module says of each row alone, without padding: what its exported graph is held to.

    batch_axes: of each argument after the first, and of each result, the axis that counts rows; time_axes: of each
    result, the axis that is as long as the first argument's second, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        carried_axes: Sequence[int],
        result_axes: Sequence[int],
        time_axes: Sequence[int | None],
    ) -> None:
        super().__init__()
        self.module = module
        self._carried_axes = carried_axes
        self._result_axes = result_axes
        self._time_axes = time_axes

    def forward(self, inputs: Tensor, lengths: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """As `WithLengths.forward`; zero past a row's length."""
        rows = []
        for row, length in enumerate(lengths.tolist()):
            given = [tensor.narrow(axis, row, 1) for tensor, axis in zip(carried, self._carried_axes, strict=True)]
            results = _as_tuple(self.module(inputs[row : row + 1, :length], *given))
            if len(results) != len(self._result_axes):
                raise ExportError(
                    f"{type(self.module).__name__} returns {len(results)} tensors, and {len(self._result_axes)} are"
                    " expected: the outputs, then every next state"
                )
            rows.append(
                [
                    result if axis is None else _padded(result, axis, inputs.shape[1])
                    for result, axis in zip(results, self._time_axes, strict=True)
                ]
            )
        columns = zip(*rows, strict=True)
        return tuple(torch.cat(column, dim=axis) for column, axis in zip(columns, self._result_axes, strict=True))


class _Layers(nn.Module):
    """Runs in the place of one `nn.RNNBase`."""

    def __init__(self, rnn: nn.RNNBase, lengths: Lengths) -> None:
        super().__init__()
        self._lengths = lengths
        self._batch_first = rnn.batch_first
        self._num_directions = 2 if rnn.bidirectional else 1
        self._is_lstm = isinstance(rnn, nn.LSTM)
        self.layers = nn.ModuleList(_layer(rnn, index) for index in range(rnn.num_layers))

    def forward(
        self, inputs: Tensor, carried: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """As the module's own."""
        outputs = inputs.transpose(0, 1) if self._batch_first else inputs  # [T, B, I]
        states = self._zeros(outputs) if carried is None else _as_tuple(carried)
        finals: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            of_layer = [state.narrow(0, index * self._num_directions, self._num_directions) for state in states]
            outputs, *final = layer(outputs, self._lengths.now, *of_layer)
            finals.append(tuple(final))
        joined = tuple(torch.cat(tensors) for tensors in zip(*finals, strict=True))
        shown = outputs.transpose(0, 1) if self._batch_first else outputs
        return shown, joined if self._is_lstm else joined[0]

    def _zeros(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The states of the first layer's kind, for all of them."""
        first = self.layers[0]
        assert isinstance(first, RecurrentLayer)  # noqa: S101  # made above
        count = len(self.layers) * self._num_directions
        return tuple(inputs.new_zeros(count, inputs.shape[1], size) for size in first.state_sizes)


def _layer(rnn: nn.RNNBase, index: int) -> RecurrentLayer:
    """A layer with the weights of one of a module's. Raises ExportError for one that there is no operator for."""
    kind: CellKind = "gru" if isinstance(rnn, nn.GRU) else "rnn"
    if isinstance(rnn, nn.LSTM):
        kind = "lstm-projected" if rnn.proj_size else "lstm"
    output_size = rnn.proj_size or rnn.hidden_size
    input_size = rnn.input_size if index == 0 else output_size * (2 if rnn.bidirectional else 1)
    try:
        layer = RecurrentLayer(
            kind,
            input_size,
            rnn.hidden_size,
            projection_size=rnn.proj_size,
            bidirectional=rnn.bidirectional,
            nonlinearity="relu" if getattr(rnn, "nonlinearity", "tanh") == "relu" else "tanh",
        )
    except ValueError as error:
        raise ExportError(f"{type(rnn).__name__}: {error}") from error
    found = rnn.state_dict()
    with torch.no_grad():
        for name, parameter in layer.rnn.named_parameters():
            given = found.get(name.replace("_l0", f"_l{index}"))
            parameter.copy_(torch.zeros_like(parameter) if given is None else given)  # a bias that is off
    return layer


def _replaced(module: nn.Module, lengths: Lengths) -> nn.Module:
    """The module, whose recurrent layers stay what they are to whoever looks at them, and run otherwise."""
    for rnn in [one for one in module.modules() if isinstance(one, nn.RNNBase)]:
        layers = _Layers(rnn, lengths)
        rnn.add_module("exported", layers)
        object.__setattr__(rnn, "forward", layers.forward)  # of this one alone, before that of its class
    return module


def _padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    missing = list(tensor.shape)
    missing[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=axis)


def _as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)

"""Wraps a user's modules for export: their `nn.RNN`, `nn.LSTM` and `nn.GRU` become layers that export as one operator.

PyTorch's modules do not know the lengths of rows, so a chunk of a ragged batch would continue into the padding. The
layers that replace them read the lengths from a shared `Lengths`, which `WithLengths` sets for each call. Weights,
layers, directions, `batch_first` and a missing bias stay as they are. There is no dropout, as in evaluation mode.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.errors import ExportError
from models.recurrent import CellKind, RecurrentLayer


class Lengths:
    """The lengths of the rows of the current call. For one thread only."""

    def __init__(self) -> None:
        self.now: Tensor | None = None


class TakesLengths(nn.Module):
    """A module that can read the lengths of the rows in the current call."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_lengths = Lengths()

    def lengths_of(self, inputs: Tensor) -> Tensor:
        """Returns the lengths [B] of inputs [B, T, ...]: those of the current call, or all T if there are none."""
        if self.shared_lengths.now is not None:
            return self.shared_lengths.now
        return torch.full((inputs.shape[0],), inputs.shape[1], dtype=torch.int64)


class WithLengths(nn.Module):
    """Wraps a module called as `module(inputs, *carried)` so that it is called as `(inputs, lengths, *carried)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._lengths = Lengths()
        self.module = _replaced(copy.deepcopy(module), self._lengths)
        for one in self.module.modules():
            if isinstance(one, TakesLengths):
                one.shared_lengths = self._lengths

    def forward(self, inputs: Tensor, lengths: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Returns the module's results as a tuple. inputs: [B, T] or [B, T, F]; lengths: [B]."""
        self._lengths.now = lengths
        try:
            return _as_tuple(self.module(inputs, *carried))
        finally:
            self._lengths.now = None


class OneStep(nn.Module):
    """Wraps a module that takes one step of each row, for export.

    Called as `(inputs, *carried)`, like the module itself; inputs: [B, 1] or [B, 1, F].
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = _replaced(copy.deepcopy(module), Lengths())

    def forward(self, inputs: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Returns the module's results as a tuple."""
        return _as_tuple(self.module(inputs, *carried))


class StepByStep(nn.Module):
    """Runs a one-step module over all steps of a row, for `RowByRow`.

    num_states: how many of the carried tensors, the first ones, are states; the others stay the same.
    """

    def __init__(self, module: nn.Module, num_states: int) -> None:
        super().__init__()
        self.module = module
        self._num_states = num_states

    def forward(self, inputs: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of all steps and the states after them. inputs: [1, T] or [1, T, F]."""
        outputs, given = [], list(carried)
        for at in range(inputs.shape[1]):
            output, *states = _as_tuple(self.module(inputs[:, at : at + 1], *given))
            outputs.append(output)
            given[: self._num_states] = states
        return (torch.cat(outputs, dim=1), *given[: self._num_states])


class RowByRow(nn.Module):
    """Runs a module on each row alone, without padding. The exported graph is compared with it.

    carried_axes, result_axes: the batch axis of each carried tensor, and of each result. time_axes: the time
    axis of each result, which is as long as the second axis of the first argument; None: the result has none.
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
        """Takes and returns the same as `WithLengths.forward`; outputs are zero past a row's length."""
        rows = []
        for row, length in enumerate(lengths.tolist()):
            given = [tensor.narrow(axis, row, 1) for tensor, axis in zip(carried, self._carried_axes, strict=True)]
            results = _as_tuple(self.module(inputs[row : row + 1, :length], *given))
            if len(results) != len(self._result_axes):
                raise ExportError(
                    f"{type(self.module).__name__} returns {len(results)} tensors, but {len(self._result_axes)} are"
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
    """Replaces the `forward` of one `nn.RNNBase`."""

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
        """Takes and returns the same as the replaced module."""
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
        """Returns zeros as the states of all layers; their sizes are those of the first layer."""
        first = self.layers[0]
        assert isinstance(first, RecurrentLayer)  # noqa: S101  # made above
        count = len(self.layers) * self._num_directions
        return tuple(inputs.new_zeros(count, inputs.shape[1], size) for size in first.state_sizes)


def _layer(rnn: nn.RNNBase, index: int) -> RecurrentLayer:
    """Returns layer `index` of a module, with its weights. Raises ExportError for one that has no ONNX operator."""
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
            parameter.copy_(torch.zeros_like(parameter) if given is None else given)  # None: the module has no bias
    return layer


def _replaced(module: nn.Module, lengths: Lengths) -> nn.Module:
    """Returns the module; its recurrent layers keep their classes and attributes but get another `forward`."""
    for rnn in [one for one in module.modules() if isinstance(one, nn.RNNBase)]:
        layers = _Layers(rnn, lengths)
        rnn.add_module("exported", layers)
        object.__setattr__(rnn, "forward", layers.forward)  # on the instance, where it hides that of the class
    return module


def _padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    missing = list(tensor.shape)
    missing[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=axis)


def _as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)

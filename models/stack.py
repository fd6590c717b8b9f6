"""Stacked recurrent layers, with dropout between them and one array for each kind of state.

Shapes: `B` batch, `T` time, `L` layers, `I` input size, `O` output size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.recurrent import CellKind, RecurrentLayer, state_names


class RecurrentStack(nn.Module):
    """Forward layers of one kind of cell. Its state arrays are `state_names`, with last axes of `state_sizes`."""

    def __init__(
        self,
        cell: CellKind,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        projection_size: int = 0,
    ) -> None:
        super().__init__()
        output_size = projection_size or hidden_size
        self.state_names = state_names(cell)
        self.num_layers = num_layers
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                cell, input_size if layer == 0 else output_size, hidden_size, projection_size=projection_size
            )
            for layer in range(num_layers)
        )

    @property
    def output_size(self) -> int:
        """O."""
        return self.state_sizes[0]

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The size of the last axis of each state."""
        layer = self.layers[0]
        assert isinstance(layer, RecurrentLayer)  # noqa: S101  # made above
        return layer.state_sizes

    def forward(self, inputs: Tensor, lengths: Tensor | None, *states: Tensor) -> tuple[Tensor, ...]:
        """inputs: [T, B, I]; lengths: [B] int64 in 1..T, or None when every row is T long; states: [L, B, size] each.

        Returns outputs [T, B, O] and the states after each row's last step, [L, B, size] each.
        """
        outputs = inputs
        following: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            outputs, *states_of_layer = layer(outputs, lengths, *(state[index : index + 1] for state in states))
            outputs = self.dropout(outputs)
            following.append(tuple(states_of_layer))
        return (outputs, *(torch.cat(tensors) for tensors in zip(*following, strict=True)))

    def zeros(self, num_rows: int) -> tuple[Tensor, ...]:
        """Returns the initial states of rows, all zeros."""
        return tuple(torch.zeros(self.num_layers, num_rows, size) for size in self.state_sizes)

"""The encoder-decoder forecaster: reads a series of real numbers and continues it.

The encoder reads the history once. The decoder reads a value and outputs the next one. So a forecast of any horizon
feeds the decoder's own values back, and observed values correct it. The layers read all values relative to the
history's last value, the level, which is part of the state. So a level that never occurred in training makes no
difference to them.

Shapes: `B` batch, `S` source, `T` time, `L` layers, `H` hidden, `F` features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.recurrent import CellKind, state_names
from models.stack import RecurrentStack


@dataclass(frozen=True, slots=True)
class ForecasterConfig:
    """The sizes of a `Forecaster`. scale: divides changes of a value; about their standard deviation."""

    feature_size: int = 1
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0
    cell: CellKind = "lstm"
    scale: float = 1.0

    def to_json(self) -> dict[str, int | float | str]:
        """Returns the sizes by name, as stored in a checkpoint."""
        return asdict(self)


class ForecastEncoder(nn.Module):
    """Reads the whole history once. Returns the decoder's initial state, and the level."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.stack = RecurrentStack(
            config.cell,
            config.feature_size,
            config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
        )

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """source: [B, S, F]; lengths: [B] int64 in 1..S. Returns the states, [L, B, H] each, and the level, [B, F]."""
        last = (lengths - 1).reshape(-1, 1, 1).expand(-1, 1, self.config.feature_size)
        level = source.gather(1, last)  # [B, 1, F]
        inputs = ((source - level) / self.config.scale).transpose(0, 1)  # [S, B, F]
        zeros = inputs.new_zeros(self.config.num_layers, inputs.shape[1], self.config.hidden_size)
        _, *states = self.stack(inputs, lengths, *(zeros for _ in state_names(self.config.cell)))
        return (*states, level.squeeze(1))


class ForecastDecoder(nn.Module):
    """Runs one step, or a ragged chunk of steps, with explicit state."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.stack = RecurrentStack(
            config.cell,
            config.feature_size,
            config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
        )
        self.change = nn.Linear(config.hidden_size, config.feature_size)

    def forward(self, features: Tensor, lengths: Tensor | None, *states: Tensor) -> tuple[Tensor, ...]:
        """features: [B, T, F]; lengths: [B] int64 in 1..T, or None; states: the stack's, [L, B, H] each, then the
        level, [B, F].

        Returns the value after each step, [B, T, F] (undefined past a row's length), and the next states, with the
        level unchanged.
        """
        *carried, level = states
        inputs = ((features - level.unsqueeze(1)) / self.config.scale).transpose(0, 1)  # [T, B, F]
        outputs, *following = self.stack(inputs, lengths, *carried)
        values = features + self.config.scale * self.change(outputs).transpose(0, 1)
        return (values, *following, level.clone())


class Forecaster(nn.Module):
    """Encoder and decoder together, for training."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ForecastEncoder(config)
        self.decoder = ForecastDecoder(config)

    def forward(self, source: Tensor, lengths: Tensor, horizon: int) -> Tensor:
        """source: [B, S, F]; lengths: [B]. Returns the forecast, [B, horizon, F], with its own values fed back."""
        states = self.encoder(source, lengths)
        last = (lengths - 1).reshape(-1, 1, 1).expand(-1, 1, self.config.feature_size)
        value = source.gather(1, last)
        forecast = []
        for _ in range(horizon):
            value, *states = self.decoder(value, None, *states)
            forecast.append(value)
        return torch.cat(forecast, dim=1)

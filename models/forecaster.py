"""The encoder-decoder forecaster: it reads a series of real numbers, and goes on with it.

The encoder reads the history once. The decoder takes a value and gives the next, so that its own values, fed back, are
a forecast of any horizon, and observed ones correct it. Everything is told relative to the last value of the history,
which is part of the state: a level that was never seen in training is none to the layers.

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
    """The sizes of a `Forecaster`. scale: what changes of a value are divided by, about their standard deviation."""

    feature_size: int = 1
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0
    cell: CellKind = "lstm"
    scale: float = 1.0

    def to_json(self) -> dict[str, int | float | str]:
        """The sizes by name, as a checkpoint keeps them."""
        return asdict(self)


class ForecastEncoder(nn.Module):
    """Reads the whole history once; gives the decoder's initial state, and the level."""

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
    """One step, or a ragged chunk of steps, from explicit state to explicit state."""

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

        Returns the value after each, [B, T, F] (meaningless past a row's length), and the next states, the level as it
        was.
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
        """source: [B, S, F]; lengths: [B]. Returns the forecast, [B, horizon, F]: its own values fed back."""
        states = self.encoder(source, lengths)
        last = (lengths - 1).reshape(-1, 1, 1).expand(-1, 1, self.config.feature_size)
        value = source.gather(1, last)
        forecast = []
        for _ in range(horizon):
            value, *states = self.decoder(value, None, *states)
            forecast.append(value)
        return torch.cat(forecast, dim=1)

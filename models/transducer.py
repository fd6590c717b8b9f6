"""The neural transducer: reads frames, and after each frame emits as many tokens as it has recognized, often none.

Graves, "Sequence transduction with recurrent neural networks" (2012). An encoder reads the frames, a predictor reads
the tokens emitted so far, and a joiner computes the next logits at one frame. If the chosen token is not the blank, the
joiner runs again at the same frame; after a blank, the next frame follows. Encoder and predictor have explicit state,
and nothing looks ahead, so sound can be processed as it arrives.

Shapes: `B` batch, `T` frames, `N` samples of a frame, `U` tokens, `L` layers, `H` hidden, `J` joined size, `V`
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.filters import Bands, FilterBank
from models.stack import RecurrentStack
from models.transducer_loss import BLANK_ID


@dataclass(frozen=True, slots=True)
class TransducerConfig:
    """The sizes of a `Transducer`. joined_size: J, the size of the joiner's two inputs."""

    vocabulary_size: int
    hidden_size: int = 80
    num_layers: int = 2
    embedding_size: int = 16
    predictor_size: int = 48
    joined_size: int = 64
    dropout: float = 0.0

    def to_json(self) -> dict[str, int | float]:
        """Returns the sizes by name, as stored in a checkpoint."""
        return asdict(self)


class TransducerEncoder(nn.Module):
    """Encodes frames of samples for the joiner, one frame or a chunk of frames at a time."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        bands = Bands()
        self.filters = FilterBank(bands)
        self.stack = RecurrentStack(
            "lstm", bands.feature_size, config.hidden_size, num_layers=config.num_layers, dropout=config.dropout
        )
        self.projection = nn.Linear(config.hidden_size, config.joined_size)

    def forward(self, frames: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames: [B, T, N] samples in -1 to 1; hidden, cell: [L, B, H]. Returns encoded [B, T, J] and the next
        states."""
        outputs, hidden, cell = self.stack(self.filters(frames).transpose(0, 1), None, hidden, cell)
        return self.projection(outputs).transpose(0, 1), hidden, cell


class TransducerPredictor(nn.Module):
    """Encodes the tokens emitted so far for the joiner. The first input is the blank."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.stack = RecurrentStack("lstm", config.embedding_size, config.predictor_size)
        self.projection = nn.Linear(config.predictor_size, config.joined_size, bias=False)

    def forward(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: [B, U] int64; hidden, cell: [1, B, H]. Returns predicted [B, U, J] and the next states."""
        outputs, hidden, cell = self.stack(self.embedding(tokens).transpose(0, 1), None, hidden, cell)
        return self.projection(outputs).transpose(0, 1), hidden, cell


class TransducerJoiner(nn.Module):
    """Computes logits from an encoded frame and the encoded tokens."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.joined_size, config.vocabulary_size)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """encoded, predicted: [..., J], which are broadcast against each other. Returns logits [..., V]."""
        logits: Tensor = self.projection(torch.tanh(encoded + predicted))
        return logits


class Transducer(nn.Module):
    """Encoder, predictor and joiner together, for training."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TransducerEncoder(config)
        self.predictor = TransducerPredictor(config)
        self.joiner = TransducerJoiner(config)

    def forward(self, frames: Tensor, num_frames: Sequence[int], targets: Sequence[Tensor]) -> list[Tensor]:
        """frames: [B, T, N], padded; num_frames: of each row; targets: [U] int64 for each row. Returns for each row the
        logits at every frame and position of its target, in the form that `transducer_loss` reads."""
        return self.join(self.encode(frames), num_frames, targets)

    def encode(self, frames: Tensor) -> Tensor:
        """Runs only the encoder, from the initial state. Returns [B, T, J]."""
        encoded: Tensor = self.encoder(frames, *self.encoder.stack.zeros(len(frames)))[0]
        return encoded

    def join(self, encoded: Tensor, num_frames: Sequence[int], targets: Sequence[Tensor]) -> list[Tensor]:
        """Runs predictor and joiner on the output of `encode`. Arguments and result as in `forward`."""
        previous = nn.functional.pad(pad_sequence(list(targets), batch_first=True), (1, 0), value=BLANK_ID)
        predicted = self.predictor(previous, *self.predictor.stack.zeros(len(previous)))[0]
        return [
            self.joiner(encoded[row, :frames, None], predicted[row, None, : len(target) + 1])
            for row, (frames, target) in enumerate(zip(num_frames, targets, strict=True))
        ]


class Emitted(NamedTuple):
    """A token, and the frame after which it was emitted, counted from 0."""

    frame: int
    token: int


class GreedyDecoder:
    """Emits the likeliest token at every position, for rows whose state continues from call to call. Not thread-safe.

    max_symbols: the most tokens emitted after one frame.
    """

    def __init__(self, model: Transducer, num_rows: int, *, max_symbols: int = 4) -> None:
        self._model = model
        self._max_symbols = max_symbols
        self._num_frames = 0
        self._encoder_states = model.encoder.stack.zeros(num_rows)
        with torch.inference_mode():
            begin = torch.full((num_rows, 1), BLANK_ID)
            self._predicted, *self._predictor_states = model.predictor(begin, *model.predictor.stack.zeros(num_rows))

    @torch.inference_mode()
    def feed(self, frames: Tensor, lengths: Sequence[int] | None = None) -> list[list[Emitted]]:
        """frames: [B, T, N]; each row has `lengths` real frames, or all T. Returns what each row emits, in order. A row
        whose length is below T has ended: its output in later calls is undefined."""
        encoded, *self._encoder_states = self._model.encoder(frames, *self._encoder_states)
        num_rows, num_frames, _ = frames.shape
        ends = torch.tensor([num_frames] * num_rows if lengths is None else lengths)
        emitted: list[list[Emitted]] = [[] for _ in range(num_rows)]
        for frame in range(num_frames):
            rows = (ends > frame).nonzero().squeeze(1)
            for _ in range(self._max_symbols):
                logits = self._model.joiner(encoded[rows, frame], self._predicted[rows, 0])
                best = logits.argmax(dim=-1)
                rows, best = rows[best != BLANK_ID], best[best != BLANK_ID]
                if not len(rows):
                    break
                for row, token in zip(rows.tolist(), best.tolist(), strict=True):
                    emitted[row].append(Emitted(self._num_frames + frame, token))
                self._predict(rows, best)
        self._num_frames += num_frames
        return emitted

    def _predict(self, rows: Tensor, tokens: Tensor) -> None:
        states = [state[:, rows] for state in self._predictor_states]
        predicted, *states = self._model.predictor(tokens[:, None], *states)
        self._predicted[rows] = predicted
        for kept, state in zip(self._predictor_states, states, strict=True):
            kept[:, rows] = state

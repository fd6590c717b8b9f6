"""The attention encoder-decoder: a bi-directional LSTM encoder, a bridge, an LSTM decoder.

The decoder is built so that a chunk of steps is one run of each layer: attention looks from the first
layer's output and feeds the layers above (as in GNMT, Wu et al. 2016), so no step needs the previous
step's attention as an input, and the recurrence is nothing but `hidden` and `cell`.

Shapes: `B` batch, `S` source, `T` target time, `L` decoder layers, `H` hidden, `A` attention size, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.layers import LSTMLayer, LuongAttention


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """The sizes of a `Seq2Seq`. Token 0 of both vocabularies is padding."""

    source_vocabulary_size: int
    target_vocabulary_size: int
    embedding_size: int = 64
    hidden_size: int = 256
    attention_size: int = 128
    num_layers: int = 2
    dropout: float = 0.3

    def to_json(self) -> dict[str, int | float]:
        """The sizes by name, as a checkpoint keeps them."""
        return asdict(self)


class Encoder(nn.Module):
    """Reads the whole source once; gives the attention memory and the decoder's initial state."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embedding = nn.Embedding(config.source_vocabulary_size, config.embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            LSTMLayer(config.embedding_size if layer == 0 else 2 * size, size, bidirectional=True)
            for layer in range(config.num_layers)
        )
        self.memory = nn.Linear(2 * size, config.attention_size, bias=False)
        self.bridge_hidden = nn.Linear(2 * size, size)
        self.bridge_cell = nn.Linear(2 * size, size)

    def forward(self, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """source: [B, S] int64, 0 where padded; lengths: [B] int64 in 1..S, or None when every row is S long.

        Returns memory [B, S, A] (zero where padded), memory_mask [B, S] bool, hidden [L, B, H], cell [L, B, H].
        """
        rows = source.shape[0]
        outputs = self.dropout(self.embedding(source)).transpose(0, 1)  # [S, B, E]
        final_hidden, final_cell = [], []
        zeros = outputs.new_zeros(2, rows, self.config.hidden_size)
        for layer in self.layers:
            outputs, hidden, cell = layer(outputs, lengths, zeros, zeros)
            outputs = self.dropout(outputs)
            final_hidden.append(hidden)  # [2, B, H]
            final_cell.append(cell)
        memory_mask = source != 0  # [B, S]
        memory = self.memory(outputs).transpose(0, 1)  # [B, S, A]
        return (
            memory,
            memory_mask,
            self._bridge(self.bridge_hidden, final_hidden),
            self._bridge(self.bridge_cell, final_cell),
        )

    @staticmethod
    def _bridge(bridge: nn.Module, finals: list[Tensor]) -> Tensor:
        """Encoder layer l's two final states become decoder layer l's initial one: [L, B, H]."""
        joined = torch.stack([torch.cat([final[0], final[1]], dim=1) for final in finals])  # [L, B, 2H]
        return torch.tanh(bridge(joined))


class Decoder(nn.Module):
    """One step, or a ragged chunk of steps, from explicit state to explicit state."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        size, attended = config.hidden_size, config.hidden_size + config.attention_size
        self.embedding = nn.Embedding(config.target_vocabulary_size, config.embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            LSTMLayer(config.embedding_size if layer == 0 else attended, size) for layer in range(config.num_layers)
        )
        self.attention = LuongAttention(size, config.attention_size)
        self.readout = nn.Linear(attended, size)
        self.logits = nn.Linear(size, config.target_vocabulary_size)

    def forward(  # noqa: PLR0917  # the graph's inputs, in its order
        self,
        tokens: Tensor,
        lengths: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: [B, T] int64; lengths: [B] int64 in 1..T, or None; hidden, cell: [L, B, H]; memory: [B, S, A];
        memory_mask: [B, S] bool.

        Returns logits [B, T, V] (meaningless past a row's length), next hidden and next cell, [L, B, H].
        """
        outputs = self.dropout(self.embedding(tokens)).transpose(0, 1)  # [T, B, E]
        context = outputs.new_zeros(0)
        next_hidden, next_cell = [], []
        for index, layer in enumerate(self.layers):
            outputs, h, c = layer(outputs, lengths, hidden[index : index + 1], cell[index : index + 1])
            outputs = self.dropout(outputs)
            next_hidden.append(h)
            next_cell.append(c)
            if index == 0:
                context = self.attention(outputs.transpose(0, 1), memory, memory_mask).transpose(0, 1)  # [T, B, A]
            outputs = torch.cat([outputs, context], dim=-1)  # [T, B, H + A]
        logits = self.read_out(outputs).transpose(0, 1)  # [B, T, V]
        return logits, torch.cat(next_hidden), torch.cat(next_cell)

    def read_out(self, outputs: Tensor) -> Tensor:
        """outputs: [..., H + A], the last layer's and what was attended. Returns logits [..., V]."""
        logits: Tensor = self.logits(self.dropout(torch.tanh(self.readout(outputs))))
        return logits


class DecoderReadout(nn.Module):
    """What comes after a state as it is: the logits of the step that led to it, without a step."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """hidden: [L, B, H]; memory: [B, S, A]; memory_mask: [B, S] bool. Returns logits [B, V]."""
        attended = self.decoder.attention(hidden[:1].transpose(0, 1), memory, memory_mask).transpose(0, 1)  # [1, B, A]
        # [1, B, V], as in a step: plain matrices get other products, of other bits
        return self.decoder.read_out(torch.cat([hidden[-1:], attended], dim=-1)).squeeze(0)


class Seq2Seq(nn.Module):
    """Encoder and decoder together, for training by teacher forcing."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> Tensor:
        """source: [B, S]; source_lengths: [B] or None; target: [B, T], beginning with the start token.

        Returns the logits of the token after each target token, [B, T, V].
        """
        memory, memory_mask, hidden, cell = self.encoder(source, source_lengths)
        logits, _, _ = self.decoder(target, None, hidden, cell, memory, memory_mask)
        return logits  # type: ignore[no-any-return]  # nn.Module calls are untyped

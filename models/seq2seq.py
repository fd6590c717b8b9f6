"""The encoder-decoder, with or without attention: a bidirectional encoder, a bridge, a decoder.

In the decoder, attention is computed from the first layer's output and feeds the layers above (as in GNMT, Wu et al.
2016). No step needs the attention of the step before. So the recurrent state is only `hidden` and `cell`, and each
layer runs a whole chunk of steps at once.

Shapes: `B` batch, `S` source, `T` target time, `L` decoder layers, `H` hidden, `A` attention size, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.attention import AttentionKind, BahdanauAttention, LuongAttention
from models.recurrent import CellKind, RecurrentLayer, state_names


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """The sizes of a `Seq2Seq`. Token 0 of both vocabularies is padding. cell: any except "lstm-projected".
    has_shared_embedding: whether source, target and logits share one embedding (Press and Wolf 2017). That needs one
    vocabulary and embedding_size = hidden_size. Raises ValueError for sizes that do not fit together."""

    source_vocabulary_size: int
    target_vocabulary_size: int
    embedding_size: int = 64
    hidden_size: int = 256
    attention_size: int = 128
    num_layers: int = 2
    dropout: float = 0.3
    cell: CellKind = "lstm"
    attention: AttentionKind = "luong"
    has_shared_embedding: bool = False

    def __post_init__(self) -> None:
        sizes = (self.source_vocabulary_size, self.embedding_size)
        if self.has_shared_embedding and sizes != (self.target_vocabulary_size, self.hidden_size):
            raise ValueError("a shared embedding needs one vocabulary, and embedding_size = hidden_size")

    @property
    def attended_size(self) -> int:
        """The size of the attention's part of an output; 0 without attention."""
        return 0 if self.attention == "none" else self.attention_size

    def to_json(self) -> dict[str, int | float | str]:
        """Returns the sizes by name, as stored in a checkpoint."""
        return asdict(self)


class Encoder(nn.Module):
    """Reads the whole source once. Returns the attention memory and the decoder's initial state."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embedding = nn.Embedding(config.source_vocabulary_size, config.embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell, config.embedding_size if layer == 0 else 2 * size, size, bidirectional=True)
            for layer in range(config.num_layers)
        )
        if config.attention != "none":
            self.memory = nn.Linear(2 * size, config.attention_size, bias=False)
        for name in state_names(config.cell):
            self.add_module(f"bridge_{name}", nn.Linear(2 * size, size))

    def forward(self, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
        """source: [B, S] int64, 0 where padded; lengths: [B] int64 in 1..S, or None when every row is S long.

        Returns memory [B, S, A] (zero where padded) and memory_mask [B, S] bool, neither without attention, then the
        states, [L, B, H] each.
        """
        rows = source.shape[0]
        names = state_names(self.config.cell)
        outputs = self.dropout(self.embedding(source)).transpose(0, 1)  # [S, B, E]
        zeros = outputs.new_zeros(2, rows, self.config.hidden_size)
        finals: list[tuple[Tensor, ...]] = []
        for layer in self.layers:
            outputs, *final = layer(outputs, lengths, *(zeros for _ in names))  # [2, B, H] each
            outputs = self.dropout(outputs)
            finals.append(tuple(final))
        states = [
            self._bridge(self.get_submodule(f"bridge_{name}"), list(final))
            for name, final in zip(names, zip(*finals, strict=True), strict=True)
        ]
        if self.config.attention == "none":
            return tuple(states)
        memory = self.memory(outputs).transpose(0, 1)  # [B, S, A]
        return (memory, source != 0, *states)

    @staticmethod
    def _bridge(bridge: nn.Module, finals: list[Tensor]) -> Tensor:
        """Makes the decoder's initial states from the encoder's final ones, layer by layer: [L, B, H]."""
        joined = torch.stack([torch.cat([final[0], final[1]], dim=1) for final in finals])  # [L, B, 2H]
        return torch.tanh(bridge(joined))


class Decoder(nn.Module):
    """Runs one step, or a ragged chunk of steps, with explicit state."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        size, attended = config.hidden_size, config.hidden_size + config.attended_size
        self.embedding = nn.Embedding(config.target_vocabulary_size, config.embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell, config.embedding_size if layer == 0 else attended, size)
            for layer in range(config.num_layers)
        )
        if config.attention == "luong":
            self.attention: nn.Module = LuongAttention(size, config.attention_size)
        elif config.attention == "bahdanau":
            self.attention = BahdanauAttention(size, config.attention_size)
        self.readout = nn.Linear(attended, size)
        self.logits = nn.Linear(size, config.target_vocabulary_size)

    def forward(self, tokens: Tensor, lengths: Tensor | None, *carried: Tensor) -> tuple[Tensor, ...]:
        """tokens: [B, T] int64; lengths: [B] int64 in 1..T, or None; carried: the states, [L, B, H] each, then with
        attention memory: [B, S, A], and memory_mask: [B, S] bool.

        Returns logits [B, T, V] (undefined past a row's length) and the next states.
        """
        num_states = len(state_names(self.config.cell))
        states, contexts = carried[:num_states], carried[num_states:]
        outputs = self.dropout(self.embedding(tokens)).transpose(0, 1)  # [T, B, E]
        attended: list[Tensor] = []  # [T, B, A], when there is attention
        following: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            outputs, *states_of_layer = layer(outputs, lengths, *(state[index : index + 1] for state in states))
            outputs = self.dropout(outputs)
            following.append(tuple(states_of_layer))
            if index == 0 and contexts:
                attended = [self.attention(outputs.transpose(0, 1), *contexts).transpose(0, 1)]
            outputs = torch.cat([outputs, *attended], dim=-1)  # [T, B, H + A]
        logits = self.read_out(outputs).transpose(0, 1)  # [B, T, V]
        return (logits, *(torch.cat(tensors) for tensors in zip(*following, strict=True)))

    def read_out(self, outputs: Tensor) -> Tensor:
        """outputs: [..., H + A], the last layer's output and the attention's. Returns logits [..., V]."""
        logits: Tensor = self.logits(self.dropout(torch.tanh(self.readout(outputs))))
        return logits


class DecoderReadout(nn.Module):
    """Computes the logits of the step that led to a state, without another step."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden: Tensor, *contexts: Tensor) -> Tensor:
        """hidden: [L, B, H]; contexts: with attention memory, [B, S, A], and memory_mask, [B, S] bool. Returns logits
        [B, V]."""
        parts = [hidden[-1:]]
        if contexts:
            query = hidden[:1].transpose(0, 1)
            parts.append(self.decoder.attention(query, *contexts).transpose(0, 1))  # [1, B, A]
        # the shape [1, B, V] as in a step: a plain matrix product gives other bits
        return self.decoder.read_out(torch.cat(parts, dim=-1)).squeeze(0)


class Seq2Seq(nn.Module):
    """Encoder and decoder together, for training with teacher forcing."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.has_shared_embedding:
            nn.init.normal_(self.decoder.logits.weight, std=config.embedding_size**-0.5)
            self.encoder.embedding.weight = self.decoder.embedding.weight = self.decoder.logits.weight

    def forward(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> Tensor:
        """source: [B, S]; source_lengths: [B] or None; target: [B, T], beginning with the start token.

        Returns the logits of the token after each target token, [B, T, V].
        """
        logits: Tensor = self.decoder(target, None, *self.carried(source, source_lengths))[0]
        return logits

    def carried(self, source: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, ...]:
        """Returns what the decoder begins with: the states, then the contexts."""
        num_contexts = 0 if self.config.attention == "none" else 2
        found = self.encoder(source, source_lengths)
        return (*found[num_contexts:], *found[:num_contexts])

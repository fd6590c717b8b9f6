"""Translators as users export them: an encoder and a decoder of one step, in two ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SOURCE_SIZE, TARGET_SIZE, UNITS = 11, 9, 8


class Encoder(nn.Module):
    """An LSTM or a GRU. lengths: packs its source. mask: also returns where there are tokens."""

    def __init__(
        self,
        kind: str = "LSTM",
        *,
        layers: int = 1,
        time_major: bool = False,
        lengths: bool = False,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(SOURCE_SIZE, UNITS)
        self.layer = getattr(nn, kind)(UNITS, UNITS, layers, batch_first=not time_major)
        self.time_major, self.lengths, self.mask = time_major, lengths, mask

    def forward(self, src: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        embedded = self.embed(src)
        if self.lengths and lengths is not None:
            packed = pack_padded_sequence(embedded, lengths, batch_first=not self.time_major, enforce_sorted=False)
            outputs, last = self.layer(packed)
            outputs, _ = pad_packed_sequence(outputs, batch_first=not self.time_major)
        else:
            outputs, last = self.layer(embedded)
        states = last if isinstance(last, tuple) else (last,)
        return (outputs, *states, src != 0) if self.mask else (outputs, *states)


class Bridged(nn.Module):
    """A bidirectional GRU. A linear layer joins its last states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SOURCE_SIZE, UNITS)
        self.layer = nn.GRU(UNITS, UNITS // 2, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(UNITS, UNITS)

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = self.layer(self.embed(src))
        return outputs, torch.tanh(self.bridge(torch.cat([last[0], last[1]], dim=1)))


class MaskedEncoder(nn.Module):
    """Embeddings with a position-wise layer. The state is their mean over the tokens that the mask selects."""

    def __init__(self, meaning: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(SOURCE_SIZE, UNITS)
        self.linear = nn.Linear(UNITS, UNITS)
        self.meaning = meaning

    def forward(self, src: Tensor, src_mask: Tensor) -> tuple[Tensor, Tensor]:
        memory = torch.tanh(self.linear(self.embed(src)))
        real = are_real(src_mask, self.meaning).unsqueeze(2).to(memory.dtype)
        return memory, ((memory * real).sum(1) / real.sum(1)).unsqueeze(0)


def are_real(mask: Tensor, meaning: str) -> Tensor:
    if meaning == "real":
        return mask != 0
    return mask == 0


class Plain(nn.Module):
    """A decoder without attention."""

    def __init__(self, kind: str = "LSTM", *, layers: int = 1, time_major: bool = False, head: str = "logits") -> None:
        super().__init__()
        self.embed = nn.Embedding(TARGET_SIZE, UNITS)
        self.layer = getattr(nn, kind)(UNITS, UNITS, layers, batch_first=not time_major)
        self.out = nn.Linear(UNITS, TARGET_SIZE)
        self.head = head

    def forward(self, token: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, (hidden, cell) = self.layer(self.embed(token), (hidden, cell))
        return headed(self.out(outputs), self.head), hidden, cell


def headed(logits: Tensor, head: str) -> Tensor:
    if head == "log_softmax":
        return torch.log_softmax(logits, -1)
    return torch.softmax(logits, -1) if head == "softmax" else logits


class Bahdanau(nn.Module):
    """A decoder with additive attention over a memory. meaning: of the mask that it takes; empty if it takes none."""

    def __init__(
        self, meaning: str = "", *, is_flat: bool = True, memory_size: int = UNITS, lengths: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(TARGET_SIZE, UNITS)
        self.query, self.key = nn.Linear(UNITS, UNITS), nn.Linear(memory_size, UNITS)
        self.energy = nn.Linear(UNITS, 1, bias=False)
        self.layer = nn.GRU(UNITS + memory_size, UNITS, batch_first=True)
        self.out = nn.Linear(UNITS, TARGET_SIZE)
        self.meaning, self.is_flat, self.lengths = meaning, is_flat, lengths

    def forward(
        self, token: Tensor, hidden: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = hidden if self.is_flat else hidden[0]  # [B, H]
        scores = self.energy(torch.tanh(self.query(state).unsqueeze(1) + self.key(memory))).squeeze(2)
        if self.lengths and mask is not None:
            mask = torch.arange(memory.shape[1]).unsqueeze(0) < mask.unsqueeze(1)
            scores = scores.masked_fill(~mask, -1e9)
        elif mask is not None and self.meaning == "additive":
            scores = scores + mask
        elif mask is not None:
            scores = scores.masked_fill(~are_real(mask, self.meaning), -1e9)
        weights = torch.softmax(scores, 1)
        context = weights.unsqueeze(1) @ memory  # [B, 1, H]
        embedded = self.embed(token)
        embedded = embedded.unsqueeze(1) if token.dim() == 1 else embedded
        outputs, last = self.layer(torch.cat([embedded, context], 2), state.unsqueeze(0))
        logits = self.out(outputs)
        return (logits[:, 0] if token.dim() == 1 else logits), (last[0] if self.is_flat else last), weights


class Luong(nn.Module):
    """A decoder that attends after its cell. The next step reads the attention vector."""

    def __init__(self, *, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(TARGET_SIZE, UNITS)
        self.layer = nn.LSTM(2 * UNITS, UNITS, layers, batch_first=True)
        self.join = nn.Linear(2 * UNITS, UNITS)
        self.out = nn.Linear(UNITS, TARGET_SIZE)

    def forward(
        self, token: Tensor, hidden: Tensor, cell: Tensor, attn_vec: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        read = torch.cat([self.embed(token), attn_vec], 1).unsqueeze(1)
        outputs, (hidden, cell) = self.layer(read, (hidden, cell))
        weights = torch.softmax(outputs @ memory.transpose(1, 2), 2)
        attn = torch.tanh(self.join(torch.cat([outputs, weights @ memory], 2)))[:, 0]
        return torch.log_softmax(self.out(attn), 1), hidden, cell, attn, weights[:, 0]


class Fed(nn.Module):
    """A decoder that reads one vector of the source in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TARGET_SIZE, UNITS)
        self.layer = nn.GRU(2 * UNITS, UNITS)
        self.out = nn.Linear(2 * UNITS, TARGET_SIZE)

    def forward(self, token: Tensor, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embed(token).unsqueeze(0)
        outputs, hidden = self.layer(torch.cat([embedded, context], 2), hidden)
        return self.out(torch.cat([outputs[0], context[0]], 1)), hidden


@dataclass(frozen=True)
class Side:
    """A module, the inputs to trace it with, and the names of its tensors and of their axes without a fixed size."""

    module: nn.Module
    example: Sequence[Tensor]
    inputs: Sequence[str]
    outputs: Sequence[str]
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


def export(side: Side, file: Path, *, opset: int = 17, dynamo: bool = False) -> Path:
    module = side.module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(side.example),
            str(file),
            input_names=list(side.inputs),
            output_names=list(side.outputs),
            dynamic_axes={name: dict(axes) for name, axes in side.axes.items()},
            opset_version=opset,
            dynamo=dynamo,
        )
    return file


def tokens(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


def floats(*shape: int) -> Tensor:
    return torch.zeros(shape)


B, S = {0: "batch"}, {0: "batch", 1: "src"}
STATE = {1: "batch"}


def encoder(
    kind: str = "LSTM", *, layers: int = 1, time_major: bool = False, lengths: bool = False, mask: bool = False
) -> Side:
    module = Encoder(kind, layers=layers, time_major=time_major, lengths=lengths, mask=mask)
    both = {0: "src", 1: "batch"} if time_major else S
    states = ["h_n", "c_n"] if kind == "LSTM" else ["h_n"]
    example = [tokens(4, 2) if time_major else tokens(2, 4), *([torch.tensor([4, 3])] if lengths else [])]
    names = ["src", *(["lengths"] if lengths else [])]
    axes = {"src": both, "memory": both, **dict.fromkeys(states, STATE)}
    axes |= {"lengths": B} if lengths else {}
    axes |= {"src_mask": both} if mask else {}
    return Side(module, example, names, ["memory", *states, *(["src_mask"] if mask else [])], axes)


def bridged() -> Side:
    return Side(Bridged(), [tokens(2, 4)], ["source"], ["annotations", "s0"], {"source": S, "annotations": S, "s0": B})


def masked_encoder(meaning: str = "real", dtype: torch.dtype = torch.bool) -> Side:
    names, axes = ["src", "src_mask"], {"src": S, "src_mask": S, "memory": S, "hidden": STATE}
    mask = torch.ones(2, 4, dtype=dtype) if meaning == "real" else torch.zeros(2, 4, dtype=dtype)
    return Side(MaskedEncoder(meaning), [tokens(2, 4), mask], names, ["memory", "hidden"], axes)


def plain(*, layers: int = 1, time_major: bool = False, head: str = "logits") -> Side:
    axis = {1: "batch"} if time_major else B
    axes = {"token": axis, "logits": axis, **dict.fromkeys(("hidden", "cell", "hidden_out", "cell_out"), STATE)}
    example = [tokens(1, 2) if time_major else tokens(2, 1), floats(layers, 2, UNITS), floats(layers, 2, UNITS)]
    names = ["token", "hidden", "cell"]
    module = Plain(layers=layers, time_major=time_major, head=head)
    return Side(module, example, names, ["logits", "hidden_out", "cell_out"], axes)


def bahdanau(
    meaning: str = "",
    dtype: torch.dtype = torch.bool,
    *,
    is_flat: bool = True,
    lengths: bool = False,
    names: Sequence[str] = ("y_prev", "s", "annotations", "mask"),
) -> Side:
    token, state, memory, mask = names
    example = [tokens(2), floats(2, UNITS) if is_flat else floats(1, 2, UNITS), floats(2, 4, UNITS)]
    given = [token, state, memory]
    axes = {
        token: B,
        state: B if is_flat else STATE,
        memory: S,
        "logits": B,
        "s_next": B if is_flat else STATE,
        "weights": S,
    }
    if meaning or lengths:
        example.append(
            torch.tensor([4, 3])
            if lengths
            else torch.zeros(2, 4, dtype=dtype)
            if meaning != "real"
            else torch.ones(2, 4, dtype=dtype)
        )
        given.append(mask)
        axes[mask] = B if lengths else S
    module = Bahdanau(meaning, is_flat=is_flat, lengths=lengths)
    return Side(module, example, given, ["logits", "s_next", "weights"], axes)


def luong(layers: int = 2) -> Side:
    states = [floats(layers, 2, UNITS), floats(layers, 2, UNITS)]
    axes = {"tok": B, "attn_vec": B, "memory": S, "logp": B, "attn_vec_out": B, "alignment": S}
    axes |= dict.fromkeys(("h", "c", "h_out", "c_out"), STATE)
    return Side(
        Luong(layers=layers),
        [tokens(2), *states, floats(2, UNITS), floats(2, 4, UNITS)],
        ["tok", "h", "c", "attn_vec", "memory"],
        ["logp", "h_out", "c_out", "attn_vec_out", "alignment"],
        axes,
    )


def fed() -> Side:
    axes = {"trg": B, "logits": B, **dict.fromkeys(("hidden", "context", "hidden_new"), STATE)}
    return Side(
        Fed(),
        [tokens(2), floats(1, 2, UNITS), floats(1, 2, UNITS)],
        ["trg", "hidden", "context"],
        ["logits", "hidden_new"],
        axes,
    )


class TwoMemories(nn.Module):
    """Returns two memories, which only their names distinguish."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SOURCE_SIZE, UNITS)
        self.layer = nn.GRU(UNITS, UNITS, batch_first=True)
        self.other = nn.Linear(UNITS, UNITS)

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, last = self.layer(self.embed(src))
        return outputs, self.other(outputs), last


class ReadsTwo(nn.Module):
    """Attends to a weighted sum of two memories."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bahdanau(is_flat=False)

    def forward(self, y: Tensor, hidden: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.inner(y, hidden, keys + 2 * values)
        return found

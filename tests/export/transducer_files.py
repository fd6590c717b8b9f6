"""Small transducers with random weights in ONNX files, as users export them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

FEATURES, ENCODED, PREDICTED, TOKENS, HIDDEN = 6, 8, 16, 7, 16


class Encoder(nn.Module):
    """Returns `num_frames` encoded frames for each frame that it reads."""

    def __init__(self, num_frames: int = 1) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True)
        self.last = nn.Linear(HIDDEN, num_frames * ENCODED)
        self.num_frames = num_frames

    def forward(self, frames: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, (hidden, cell) = self.rnn(frames, (hidden, cell))
        encoded = self.last(outputs)
        return encoded.reshape(-1, self.num_frames, ENCODED) if self.num_frames > 1 else encoded, hidden, cell


class Predictor(nn.Module):
    """A prediction network: a GRU over tokens [A, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 5)
        self.rnn = nn.GRU(5, PREDICTED, batch_first=True)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.rnn(self.embed(tokens), state)
        return outputs, state


class Squeezed(Predictor):
    """Leaves out an axis of size 1, as users do. torch.onnx exports this as an `If` whose branches return tensors of
    different ranks."""

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = super().forward(tokens, state)
        return outputs.squeeze(1), state


class TimeFirst(nn.Module):
    """An encoder whose first axis counts frames, and its second rows."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded, hidden, cell = self.encoder(frames.transpose(0, 1), hidden, cell)
        return encoded.transpose(0, 1), hidden, cell


class Stateless(nn.Module):
    """A prediction network: a convolution over the last two tokens [A, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 5)
        self.mix = nn.Linear(10, PREDICTED)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.embed(tokens).flatten(1)))


class Joiner(nn.Module):
    """Returns logits, computed from the tanh of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(ENCODED, 16), nn.Linear(PREDICTED, 16)
        self.last = nn.Linear(16, TOKENS)
        with torch.no_grad():  # so that emissions depend on frames and tokens, and many frames emit nothing
            self.one.weight *= 4.0
            self.other.weight *= 2.0
            self.last.weight *= 3.0
            self.last.bias[0] += 3.0

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.one(encoder_out) + self.other(decoder_out)) * 3.0)
        return logits


class Joined(nn.Module):
    """Prediction network and joiner in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor, self.joiner = Predictor(), Joiner()

    def forward(self, encoded: Tensor, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        predicted, state = self.predictor(tokens, state)
        return self.joiner(encoded, predicted), state


def write(
    folder: Path, *, kind: str = "three", num_frames: int = 1, seed: int = 0, time_axis: str | None = None
) -> list[Path]:
    """Writes the files and returns them.

    kind: `three`, with a GRU as prediction network; `squeezed`, where it leaves out an axis; `stateless`, where it
    reads the last two tokens; `two`, where the second file contains prediction network and joiner.
    time_axis: the name of the encoder's first axis, if that counts frames.
    """
    torch.manual_seed(seed)
    files = [folder / "encoder.onnx"]
    state, batch = torch.zeros(2, 2, HIDDEN), {0: "batch"}
    row = {1: "batch"}
    encoder = Encoder(num_frames)
    with torch.no_grad():
        for name, weight in encoder.rnn.named_parameters():
            if name.startswith("weight_ih"):
                weight.mul_(8.0)
    frames = batch if time_axis is None else {0: time_axis, 1: "streams"}
    rows = row if time_axis is None else {1: "streams"}
    _export(
        encoder if time_axis is None else TimeFirst(encoder),
        (torch.zeros(2, 1, FEATURES) if time_axis is None else torch.zeros(1, 2, FEATURES), state, state),
        files[0],
        {"frames": frames, "h0": rows, "c0": rows, "encoded": frames, "h1": rows, "c1": rows},
        num_inputs=3,
    )
    hidden = torch.zeros(1, 2, PREDICTED)
    if kind == "two":
        files.append(folder / "decoder.onnx")
        _export(
            Joined(),
            (torch.zeros(2, 1, ENCODED), torch.zeros(2, 1, dtype=torch.int64), hidden),
            files[1],
            {"enc": batch, "y": batch, "h": row, "logits": batch, "hn": row},
            num_inputs=3,
        )
        return files
    files += [folder / "predictor.onnx", folder / "joiner.onnx"]
    if kind == "stateless":
        tokens = torch.zeros(2, 2, dtype=torch.int64)
        _export(Stateless(), (tokens,), files[1], {"y": batch, "decoder_out": batch}, num_inputs=1)
    else:
        tokens = torch.zeros(2, 1, dtype=torch.int64)
        names = {"y": batch, "state": row, "predicted": batch, "next_state": row}
        predictor = Squeezed() if kind == "squeezed" else Predictor()
        _export(predictor, (tokens, hidden), files[1], names, num_inputs=2)
    encoded, predicted = torch.zeros(2, ENCODED), torch.zeros(2, PREDICTED)
    _export(
        Joiner(),
        (encoded, predicted),
        files[2],
        {"encoder_out": batch, "decoder_out": batch, "logit": batch},
        num_inputs=2,
    )
    return files


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], file: Path, names: dict[str, dict[int, str]], *, num_inputs: int
) -> None:
    found = list(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter that made most files
        torch.onnx.export(
            module.eval(),
            inputs,
            str(file),
            input_names=found[:num_inputs],
            output_names=found[num_inputs:],
            dynamic_axes=names,
            opset_version=17,
            dynamo=False,
        )

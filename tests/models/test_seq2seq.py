"""Layers and the encoder-decoder give a row the same result alone, in a ragged batch, in chunks and step by step."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from models.attention import LuongAttention
from models.recurrent import RecurrentLayer
from models.seq2seq import Seq2Seq, Seq2SeqConfig

CONFIG = Seq2SeqConfig(9, 7, embedding_size=5, hidden_size=8, attention_size=6)
LENGTHS = (6, 3, 1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_ragged_layer_runs_each_row_as_if_it_were_alone(bidirectional: bool) -> None:
    """A row's outputs up to its length and its last states equal those of the row alone; outputs past its length are
    zero."""
    layer = RecurrentLayer("lstm", 4, 8, bidirectional=bidirectional)
    inputs = torch.randn(max(LENGTHS), len(LENGTHS), 4)
    hidden, cell = torch.randn(2, layer.num_directions, len(LENGTHS), 8)
    outputs, last_hidden, last_cell = layer(inputs, torch.tensor(LENGTHS), hidden, cell)
    for row, length in enumerate(LENGTHS):
        here = slice(row, row + 1)
        alone, alone_hidden, alone_cell = layer(inputs[:length, here], None, hidden[:, here], cell[:, here])
        torch.testing.assert_close(outputs[:length, here], alone)
        torch.testing.assert_close(last_hidden[:, here], alone_hidden)
        torch.testing.assert_close(last_cell[:, here], alone_cell)
        assert not outputs[length:, row].any()


def test_attention_gives_padding_no_weight() -> None:
    """A query has the same context over a memory with padding and over the same memory without."""
    attention = LuongAttention(8, 6)
    query, memory = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    padded = torch.cat([memory, torch.zeros(1, 3, 6)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(attention(query, padded, mask), attention(query, memory, mask[:, :5]))


def test_the_encoder_reads_a_ragged_batch_row_by_row() -> None:
    """The memory at real positions and the initial states equal those of the row alone; padded memory is zero."""
    encoder = Seq2Seq(CONFIG).eval().encoder
    source = _ragged_source()
    memory, mask, hidden, cell = encoder(source, torch.tensor(LENGTHS))
    assert mask.tolist() == [[place < length for place in range(max(LENGTHS))] for length in LENGTHS]
    for row, length in enumerate(LENGTHS):
        alone_memory, _, alone_hidden, alone_cell = encoder(source[row : row + 1, :length], None)
        torch.testing.assert_close(memory[row, :length], alone_memory[0])
        torch.testing.assert_close(hidden[:, row], alone_hidden[:, 0])
        torch.testing.assert_close(cell[:, row], alone_cell[:, 0])
        assert not memory[row, length:].any()


def test_a_chunk_of_steps_is_the_same_steps_one_by_one() -> None:
    """The decoder's logits and last states do not depend on how the target is cut."""
    model = Seq2Seq(CONFIG).eval()
    memory, mask, hidden, cell = model.encoder(_ragged_source(), torch.tensor(LENGTHS))
    target = torch.randint(1, 7, (len(LENGTHS), 5))
    logits, last_hidden, last_cell = model.decoder(target, None, hidden, cell, memory, mask)
    for step in range(5):
        one, hidden, cell = model.decoder(target[:, step : step + 1], None, hidden, cell, memory, mask)
        torch.testing.assert_close(one[:, 0], logits[:, step])
    torch.testing.assert_close(hidden, last_hidden)
    torch.testing.assert_close(cell, last_cell)


def _ragged_source() -> Tensor:
    source = torch.randint(1, 9, (len(LENGTHS), max(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        source[row, length:] = 0
    return source

"""Beam search is greedy with a beam of one, and exhaustive if the beam is wide enough."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from models.search import beam_search
from models.seq2seq import Seq2Seq, Seq2SeqConfig

BOS, EOS, V = 1, 2, 5


@pytest.fixture(params=range(3))
def model(request: pytest.FixtureRequest) -> Seq2Seq:
    """A model with large random weights, so that its probabilities differ clearly."""
    torch.manual_seed(request.param)
    model = Seq2Seq(Seq2SeqConfig(6, V, embedding_size=4, hidden_size=8, attention_size=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


@pytest.fixture
def source() -> Tensor:
    """Four sources of one length, [4, 5]."""
    return torch.randint(1, 6, (4, 5), generator=torch.Generator().manual_seed(0))


def test_width_one_takes_the_likeliest_token_each_time(model: Seq2Seq, source: Tensor) -> None:
    """A beam of one equals a plain loop that feeds back the likeliest token until the end token or the limit."""
    found = beam_search(model, source, None, beam_size=1, max_tokens=9, bos_id=BOS, eos_id=EOS)
    for row, tokens in zip(source, found, strict=True):
        assert tokens == _greedy(model, row, max_tokens=9)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(model: Seq2Seq, source: Tensor, penalty: float) -> None:
    """If every sequence fits into the beam, the result is the best of all sequences."""
    found = beam_search(
        model, source, None, beam_size=V**4, max_tokens=3, bos_id=BOS, eos_id=EOS, length_penalty=penalty
    )
    for row, tokens in zip(source, found, strict=True):
        assert tokens == _best_of_all(model, row, num_steps=4, length_penalty=penalty)


def test_a_row_is_decoded_alike_alone_and_in_a_padded_batch(model: Seq2Seq, source: Tensor) -> None:
    """With lengths, a shorter source in the same batch is decoded as it is alone."""
    ragged = source.clone()
    ragged[0, 2:] = 0
    lengths = torch.tensor([2, 5, 5, 5])
    together = beam_search(model, ragged, lengths, beam_size=3, max_tokens=9, bos_id=BOS, eos_id=EOS)
    alone = beam_search(model, ragged[:1, :2], None, beam_size=3, max_tokens=9, bos_id=BOS, eos_id=EOS)
    assert together[0] == alone[0]


@torch.no_grad()
def _greedy(model: Seq2Seq, row: Tensor, *, max_tokens: int) -> list[int]:
    memory, mask, hidden, cell = model.encoder(row.unsqueeze(0), None)
    tokens = [BOS]
    for _ in range(max_tokens + 1):
        logits, hidden, cell = model.decoder(torch.tensor([[tokens[-1]]]), None, hidden, cell, memory, mask)
        tokens.append(int(logits[0, 0].argmax()))
        if tokens[-1] == EOS:
            return tokens[1:-1]
    return tokens[1:]


@torch.no_grad()
def _best_of_all(model: Seq2Seq, row: Tensor, *, num_steps: int, length_penalty: float) -> list[int]:
    """Returns the best sequence of `num_steps` tokens. Scores all by teacher forcing, each cut at its first end
    token."""
    every = torch.tensor(list(itertools.product(range(V), repeat=num_steps)))  # [V ** num_steps, num_steps]
    inputs = torch.cat([torch.full((len(every), 1), BOS), every[:, :-1]], dim=1)
    logits = model(row.expand(len(every), -1), None, inputs)
    steps = logits.log_softmax(-1).gather(2, every.unsqueeze(-1)).squeeze(-1)  # [V ** num_steps, num_steps]
    scored = {}
    for tokens, values in zip(every.tolist(), steps.tolist(), strict=True):
        length = tokens.index(EOS) + 1 if EOS in tokens else num_steps
        scored[tuple(tokens[:length])] = sum(values[:length]) / length**length_penalty
    best = max(scored, key=scored.__getitem__)
    return [token for token in best if token != EOS]

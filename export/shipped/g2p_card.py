"""The card of `g2p-en`: what it is, its figures next to published ones, its limits, the source of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from export.shipped import recipe_card
from export.shipped.recipe_card import Story, making
from models.seq2seq import Seq2SeqConfig
from service.repository.manifest import VariantSpec

_PUBLISHED = (
    # system, dictionary and split, word error rate %, phoneme error rate %
    ("Phonetisaurus (finite-state transducers), as CMUSphinx reports", "CMUdict of today", "33.89", "-"),
    ("Balacoon's transducer baseline", "CMUdict of today, 113,628 / 11,978 words", "33.54", "6.11"),
    ("CMUSphinx g2p-seq2seq, LSTM 2x64", "CMUdict of today", "about 39", "-"),
    ("CMUSphinx g2p-seq2seq, LSTM 2x512", "CMUdict of today", "about 31", "-"),
    ("Phonetisaurus, as CMUSphinx reports", "PRONASYL 2007", "24.4", "-"),
    ("Yao and Zweig 2015, bi-directional LSTM with alignments", "PRONASYL 2007", "23.55", "5.45"),
    ("CMUSphinx g2p-seq2seq, LSTM 2x512", "PRONASYL 2007", "23.3", "-"),
    ("Rao et al. 2015, deep bi-directional LSTM, CTC, 5-gram transducer", "PRONASYL 2007", "21.3", "-"),
    ("Toshniwal and Livescu 2016, global attention, ensemble of 5", "PRONASYL 2007", "20.24", "4.69"),
)

Example = tuple[str, str, Sequence[str]]
"""A word, the model's phonemes for it, and the dictionary's pronunciations."""


class Rates(BaseModel):
    """Error rates of one way of decoding, as fractions (0.28 is 28 %)."""

    model_config = ConfigDict(frozen=True)

    word_error_rate: float
    """Share of words whose transcription differs from every listed pronunciation."""
    phoneme_error_rate: float
    """Sum of edit distances to the nearest listed pronunciation, divided by the sum of their lengths."""
    num_words: int
    """Number of scored words."""


class Evaluation(recipe_card.Evaluation):
    """The contents of the recipe's `evaluation.json`; further fields are kept."""

    num_training_words: int
    """Number of words in training."""
    num_validation_words: int
    """Number of words that chose the best epoch."""
    num_test_words: int
    """Number of scored words."""
    greedy: Rates
    """Rates with the likeliest phoneme at each step."""
    beam_4: Rates
    """Rates with a beam search of width 4, by mean log-probability."""


def story(
    evaluation: Evaluation,
    config: Seq2SeqConfig,
    variants: Mapping[str, VariantSpec],
    *,
    num_parameters: int,
    examples: Sequence[Example],
    max_source_length: int,
    licence_file: str,
) -> Story:
    """Returns the contents of the card. licence_file: the name of a file next to it."""
    measured = [("greedy", evaluation.greedy), ("beam of 4", evaluation.beam_4)]
    for name, variant in variants.items():
        measured.append((f"{name}, greedy", Rates.model_validate(variant.evaluation["greedy"])))
    ours = [
        (
            f"**this model, {way}**",
            "CMUdict of today, our split",
            *map(_percent, (r.word_error_rate, r.phoneme_error_rate)),
        )
        for way, r in measured
    ]
    flags = f" --variants {' '.join(variants)} --max-bytes 18000000" if variants else ""
    return Story(
        about=[
            f"An LSTM encoder-decoder with attention: {config.num_layers} bi-directional encoder layers and "
            f"{config.num_layers} decoder layers of {config.hidden_size} units, embeddings of {config.embedding_size}, "
            f"Luong's general attention of {config.attention_size} from the first decoder layer; "
            f"{num_parameters:,} parameters, 32-bit floats.",
            "It reads a word letter by letter and generates its phonemes, one in each step. Some words that are not in "
            "the training data, decoded greedily:",
        ],
        examples=[
            ["word", "its answer", "listed"],
            *([word, answer, ", ".join(listed)] for word, answer, listed in examples),
        ],
        figures=[["system", "data", "word error rate, %", "phoneme error rate, %"], *ours, *_PUBLISHED],
        figures_note=f"Measured on {evaluation.num_test_words:,} test words. The model was trained on "
        f"{evaluation.num_training_words:,} words of the CMU Pronouncing Dictionary with all their pronunciations; "
        f"{evaluation.num_validation_words:,} others chose the epoch. A word counts as right when its transcription is "
        "one of the listed pronunciations. The phoneme error rate is the edit distance to the nearest listed "
        "pronunciation, divided by that pronunciation's length.\n\n"
        "**The split is our own**, so these figures cannot be compared directly with the published ones. Today's "
        "dictionary has no standard split, other authors split it in other ways, and it is harder than the PRONASYL "
        "2007 split (106,837 training and 12,000 test words), which does not come with the dictionary. The published "
        "figures are those that their authors report; we did not repeat the measurements.",
        commands=making("g2p", flags),
        limits=[
            f"It reads words of up to {max_source_length} letters, a to z and the apostrophe, but no digits, hyphens, "
            "full stops, accents or abbreviations: spell them out first.",
            "It writes North American English as the dictionary transcribes it, without stress. Many entries of the "
            "dictionary are names, and the spelling of names of foreign origin says little about their pronunciation.",
            "A word has one transcription in every sentence: it does not distinguish the two words `read`, or `lead`.",
            "It answers every sequence of these letters, word or not, and does not say when it guesses.",
        ],
        data="The CMU Pronouncing Dictionary, Copyright (C) 1993-2015 Carnegie Mellon University, under the BSD-style "
        f"licence in [{licence_file}]({licence_file}). The weights are under the project's own licence, Apache-2.0.",
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"

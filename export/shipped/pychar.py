"""Makes the bundle of `models.recipes.pychar`: Python source, character by character."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Unpack

import torch

from export.bundle import BundleOptions, write_language_model
from export.proofs.runners import one_torch_thread
from export.shipped.recipe_card import Evaluation, Story, describe, making
from export.shipped.runs import load_evaluation, load_model
from export.vocabulary import Vocabulary
from models.language_model import LanguageModel
from models.recipes import pychar as recipe
from models.recipes import python_source as data
from service.repository.manifest import SpecialTokens

DESCRIPTION = "Python source character by character, trained on the standard library"

_PROMPTS = ("import os\nimport s", "def __init__(self", "    for i in ra", "    if not isinst", "class Error(Exc")
_MAX_COMPLETION = 40


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `evaluation.json` and, if it exists, `curves.png`
    from the checkpoint's folder. Raises what `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, Evaluation, "models.recipes.pychar")
    text = _story(model, evaluation)
    describe(options, checkpoint, evaluation, lambda _: text)
    return write_language_model(
        model,
        vocabulary=Vocabulary(data.CHARACTERS, "characters", unknown_id=data.UNKNOWN_ID),
        special_tokens=SpecialTokens(pad_id=data.UNKNOWN_ID, bos_id=data.START_ID),
        **options,
    )


def _story(model: LanguageModel, evaluation: Evaluation) -> Story:
    config = model.config
    with one_torch_thread():
        completions = [_complete(model, prompt) for prompt in _PROMPTS]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    bits, baseline = evaluation.figure("bits_per_character"), evaluation.figure("baseline_bits_per_character")
    shown = [[f"`{_shown(prompt)}`", f"`{_shown(done)}`"] for prompt, done in zip(_PROMPTS, completions, strict=True)]
    return Story(
        about=[
            f"An LSTM language model: one layer of {config.hidden_size} units over embeddings of "
            f"{config.embedding_size}; {num_parameters:,} parameters, 32-bit floats.",
            "For an editor: open a session for a file, feed the typed characters, and generate a completion to the end "
            'of the line (`stop=["\\n"]`). A completion costs one step for each character typed since the last one, '
            "and one for each generated character. To take a completion back, rewind to a mark, or generate it in a "
            "fork. Greedy completions to the end of the line:",
        ],
        examples=[["typed", "its completion"], *shown],
        figures=[
            ["model", "bits per character"],
            ["**this model**", f"{bits:.3f}"],
            ["character 5-gram, interpolated Kneser-Ney, on the same files", f"{baseline:.3f}"],
        ],
        figures_note=f"Measured on {evaluation.figure('num_test_characters'):,.0f} characters of files that are not "
        f"in the training data, which has {evaluation.figure('num_training_characters'):,.0f} characters. Lower is "
        "better: 1 bit is a choice between two.",
        commands=making("pychar"),
        limits=[
            "It knows the style and the names of the standard library, not those of your code.",
            "It reads printable ASCII, spaces and line feeds. Every other character is one unknown token. Tabs were "
            "expanded to 8 spaces for training.",
            "Its output does not always follow Python's grammar.",
        ],
        data=f"The standard library of CPython {platform.python_version()}, without its tests. Copyright (c) Python "
        "Software Foundation, under the Python Software Foundation License Version 2. The weights are under the "
        "project's own licence, Apache-2.0.",
    )


def _shown(text: str) -> str:
    return text.replace("\n", "\\n").replace("|", "\\|")


@torch.inference_mode()
def _complete(model: LanguageModel, prompt: str) -> str:
    tokens = [data.START_ID, *data.encode(prompt)]
    states = model.stack.zeros(1)
    completion = ""
    for _ in range(_MAX_COMPLETION):
        logits, *following = model(torch.tensor([tokens]), None, *states)
        states = tuple(following)
        token = int(logits[0, -1].argmax())
        if data.CHARACTERS[token] == "\n" or token == data.START_ID:
            break
        completion += data.CHARACTERS[token]
        tokens = [token]
    return completion

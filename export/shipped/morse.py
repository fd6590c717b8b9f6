"""Makes the bundle of `models.recipes.morse`: sound to characters, while they are keyed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple, Unpack

from export.bundle import BundleOptions
from export.foreign.axes import Hints
from export.shipped.morse_files import VOCABULARY, write_files
from export.shipped.recipe_card import Evaluation, Story, describe, making
from export.shipped.runs import load_evaluation, load_model
from export.transducers.bare_loop import Rules
from export.transducers.command import read_files, write_transducer
from models.recipes import morse as recipe
from models.recipes import morse_data as data
from models.transducer import Transducer

DESCRIPTION = "Morse code by ear: samples of sound, 40 ms a step, to the characters that are keyed, as they come"


class Rates(NamedTuple):
    """Character error rates, as fractions."""

    model: float
    baseline: float


class MorseEvaluation(Evaluation):
    """The contents of the recipe's `evaluation.json`."""

    by_snr_db: dict[str, Rates]
    """Rates by signal-to-noise ratio in decibels; `inf` is no noise."""
    by_words_per_minute: dict[str, Rates]
    """Rates by speed in words a minute."""


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `evaluation.json` and, if it exists, `curves.png`
    from the checkpoint's folder. Raises what `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, MorseEvaluation, "models.recipes.morse")
    text = story(model, evaluation)
    describe(options, checkpoint, evaluation, lambda _: text)
    options.setdefault("sample_rate", data.RATE)
    rules = Rules()
    with tempfile.TemporaryDirectory() as name:
        files = write_files(model, Path(name))
        encoder, decoder = read_files([files.encoder, files.predictor, files.joiner], Hints(), rules)
        return write_transducer(encoder, decoder, rules, VOCABULARY, **options).folder


def story(model: Transducer, evaluation: MorseEvaluation) -> Story:
    """Returns the contents of the card that the manifest does not have."""
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    slowest, fastest = data.SPEEDS
    rows = {
        "all": Rates(evaluation.figure("character_error_rate"), evaluation.figure("baseline_character_error_rate")),
        **{_noise(snr_db): rates for snr_db, rates in evaluation.by_snr_db.items()},
        **{f"{speed} words a minute": rates for speed, rates in evaluation.by_words_per_minute.items()},
        "streams of a minute": Rates(
            evaluation.figure("minute_character_error_rate"),
            evaluation.figure("baseline_minute_character_error_rate"),
        ),
    }
    return Story(
        about=[
            f"A neural transducer (RNN-T; Graves 2012): an encoder of {config.num_layers} LSTM layers of "
            f"{config.hidden_size} units over a fixed bank of filters, a predictor of one LSTM layer of "
            f"{config.predictor_size} units over the characters emitted so far, and a joiner; {num_parameters:,} "
            "parameters, 32-bit floats.",
            f"It reads mono sound of {data.RATE} samples per second, {data.FRAME} samples in each step, as floats from "
            "-1 to 1, of any loudness. After each step it emits the characters that it has recognised. Most steps emit "
            "none, because a character is complete only when the silence after it is longer than a gap within it. One "
            "session is one stream of sound, of any length.",
        ],
        figures=[
            ["character error rate, %", "**this model**", "the baseline"],
            *([name, *(f"{100.0 * rate:.1f}" for rate in rates)] for name, rates in rows.items()),
        ],
        figures_note=f"Measured on {evaluation.figure('num_test_utterances'):.0f} utterances of about ten seconds. "
        "Each row by noise or speed has 100 utterances, in which everything else is drawn as in training. Signal to "
        "noise is the tone's power divided by the noise's power from 0 to 4 kHz. The baseline compares the loudness "
        "of one tone with a threshold, measures times in dots, and looks characters up in a table "
        "(`models/recipes/morse_envelope.py`). It learns nothing, and reads a whole recording before it answers; the "
        "model knows only the sound so far.",
        commands=making("morse"),
        limits=[
            f"It reads code that is keyed at {slowest:.0f} to {fastest:.0f} words a minute, in tones of 400 to 1000 "
            "Hz, by one sender at a time. The recipe made all of its training data: none was recorded from radio.",
            "In the loudest noise, and on streams of a minute, the baseline makes fewer errors, because it reads the "
            "whole recording first.",
            "It knows the 26 letters, which it writes in lower case, the digits, and `. , ? / =`, but no procedural "
            "signs.",
            "It has also learnt the words of a dictionary and the abbreviations of operators. In loud noise it may "
            "write one of these in place of the characters that were sent.",
        ],
        data="Words of the CMU Pronouncing Dictionary, Copyright (C) 1993-2015 Carnegie Mellon University, under a "
        "BSD-style licence, and text and sound that the recipe makes from its seed. The weights are under the "
        "project's own licence, Apache-2.0.",
    )


def _noise(snr_db: str) -> str:
    return "no noise" if snr_db == "inf" else f"signal to noise {snr_db} dB"

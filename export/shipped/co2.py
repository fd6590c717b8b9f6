"""Makes the bundle of `models.recipes.co2`: atmospheric carbon dioxide, months ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from export.bundle import BundleOptions, write_forecaster
from export.shipped.recipe_card import Evaluation, Story, describe, making
from export.shipped.runs import load_evaluation, load_model
from models.forecaster import Forecaster
from models.recipes import co2 as recipe

DESCRIPTION = "Monthly atmospheric carbon dioxide in parts per million, forecast from the months before"
MAX_SOURCE_LENGTH = 480
MAX_TOKENS = 120


def export_bundle(checkpoint: Path, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a checkpoint and returns its folder. Reads `evaluation.json` and, if it exists, `curves.png`
    from the checkpoint's folder. Raises what `export.bundle.write_seq2seq` raises."""
    model = load_model(checkpoint, recipe.load_model, recipe.MODEL)
    evaluation = load_evaluation(checkpoint, Evaluation, "models.recipes.co2")
    text = _story(model, evaluation)
    describe(options, checkpoint, evaluation, lambda _: text)
    options.setdefault("max_tokens", MAX_TOKENS)
    return write_forecaster(model, max_source_length=MAX_SOURCE_LENGTH, **options)


def _story(model: Forecaster, evaluation: Evaluation) -> Story:
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Story(
        about=[
            f"An LSTM encoder-decoder: {config.num_layers} layer each of {config.hidden_size} units; "
            f"{num_parameters:,} parameters, 32-bit floats. It reads and returns parts per million. Inside, it "
            "computes relative to the last month that it read, so it also works at levels that were not in the "
            "training data.",
            "Open a session with the known months as its source, a tensor `[months, 1]` of about 36 months, and "
            "generate the next months. When a month has been observed, feed it: the forecast continues from there.",
        ],
        figures=[
            ["forecast", "mean absolute error, ppm"],
            ["**this model**", f"{evaluation.figure('mean_absolute_error'):.3f}"],
            ["seasonal naive: the value of a year before", f"{evaluation.figure('seasonal_naive'):.3f}"],
            [
                "seasonal naive with drift: the same, plus the last year's increase",
                f"{evaluation.figure('seasonal_naive_with_drift'):.3f}",
            ],
        ],
        figures_note=f"Measured on {evaluation.figure('num_test_windows'):.0f} windows and the 12 months after each.",
        commands=making("co2"),
        limits=[
            "It gives one number per month, without an interval around it.",
            "It was trained on windows of 36 months, and measured 12 months ahead. Further ahead, errors add up.",
            "The data are of one site, and end in 2001. The model knows nothing else.",
        ],
        data="C. D. Keeling and T. P. Whorf, atmospheric CO2 concentrations derived from flask air samples at sites in "
        "the SIO network, in: Trends: A Compendium of Data on Global Change, Oak Ridge National Laboratory, 2004. "
        "Public domain; as statsmodels ships it. The weights are under the project's own licence, Apache-2.0.",
    )

"""A forecaster of atmospheric carbon dioxide: reads three years of months, and forecasts any number of months.

    python -m models.recipes.co2 train --run runs/co2
    python -m models.recipes.co2 evaluate runs/co2/best.safetensors

A killed `train` resumes after its last complete epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models import command_line, training
from models.curves import plot_curves
from models.forecaster import Forecaster, ForecasterConfig
from models.recipes import co2_data as data

MODEL = "co2-forecast"
HISTORY, HORIZON = 36, 12
"""Months of history, and months forecast in training and evaluation."""
VALIDATION_MONTHS, TEST_MONTHS = 60, 120
"""The last months of the series are the test; those before them are for validation. Training uses only earlier ones."""

Batch = tuple[Tensor, Tensor]
"""history [B, HISTORY, 1], and the following months [B, HORIZON, 1]."""


def train(run: Path, config: training.TrainingConfig, model_config: ForecasterConfig, *, batch_size: int) -> None:
    """Trains into the folder `run`, or resumes the run there, and evaluates the best epoch."""
    torch.manual_seed(config.seed)
    series = data.load()
    end = len(series) - TEST_MONTHS
    history, following = windows(series, HISTORY, end - VALIDATION_MONTHS)
    validation = windows(series, end - VALIDATION_MONTHS, end)

    def batches(epoch: int) -> list[Batch]:
        order = torch.randperm(len(history), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        return [(history[some], following[some]) for some in torch.split(order, batch_size)]

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        source, expected = batch
        error: Tensor = (_forecast(cast(Forecaster, module), source) - expected).abs().mean()
        return error

    training_history = training.train(
        Forecaster(model_config),
        run=run,
        config=config,
        batches=batches,
        loss=loss,
        validation_error=lambda module: mean_absolute_error(cast(Forecaster, module), *validation),
        metadata={"model": MODEL, "config": json.dumps(model_config.to_json())},
    )
    plot_curves(
        training_history,
        run / "curves.png",
        error_name="validation error (ppm)",
        loss_name="training loss (ppm)",
        is_share=False,
    )
    write_evaluation(run / "best.safetensors")


def windows(series: data.FloatArray, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Returns every window whose forecast lies within [begin, end): histories [N, HISTORY, 1], and the following months
    [N, HORIZON, 1]."""
    starts = range(begin - HISTORY, end - HISTORY - HORIZON + 1)
    whole = np.stack([series[start : start + HISTORY + HORIZON] for start in starts]).astype(np.float32)
    return torch.from_numpy(whole[:, :HISTORY, None]), torch.from_numpy(whole[:, HISTORY:, None])


@torch.inference_mode()
def mean_absolute_error(model: Forecaster, history: Tensor, expected: Tensor) -> float:
    """Returns the mean over all windows and months, in parts per million."""
    return (_forecast(model, history) - expected).abs().mean().item()


def load_model(checkpoint: Path) -> Forecaster:
    """Returns a checkpoint's trained model, in evaluation mode. Raises ValueError for another recipe's checkpoint."""
    return training.load_trained(checkpoint, MODEL, lambda sizes: Forecaster(ForecasterConfig(**sizes)))


def write_evaluation(checkpoint: Path) -> dict[str, object]:
    """Compares a checkpoint with seasonal naive forecasts on the last ten years. Writes `evaluation.json` beside it."""
    series = data.load()
    history, expected = windows(series, len(series) - TEST_MONTHS, len(series))
    past, truth = history[..., 0].double().numpy(), expected[..., 0].double().numpy()

    def error_of(forecast: data.FloatArray) -> float:
        return float(np.abs(forecast - truth).mean())

    return training.write_evaluation(
        checkpoint,
        {
            "task": f"monthly CO2 at Mauna Loa in ppm: {HORIZON} months ahead from {HISTORY}",
            "split": f"in time: the last {TEST_MONTHS} months test, {VALIDATION_MONTHS} before them validation",
            "num_test_windows": len(history),
            "mean_absolute_error": mean_absolute_error(load_model(checkpoint), history, expected),
            "seasonal_naive": error_of(data.seasonal_naive(past, HORIZON)),
            "seasonal_naive_with_drift": error_of(data.seasonal_naive_with_drift(past, HORIZON)),
        },
    )


def _forecast(model: Forecaster, history: Tensor) -> Tensor:
    forecast: Tensor = model(history, torch.full((len(history),), history.shape[1]), HORIZON)
    return forecast


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.co2", __doc__.splitlines()[0], train=_train, evaluate=write_evaluation)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 300,
    hidden: command_line.Hidden = 48,
    batch_size: command_line.BatchSize = 32,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    train(
        run,
        training.TrainingConfig(
            epochs=epochs,
            learning_rate=3e-3,
            warmup_steps=50,
            average_decay=0.99,
            patience=80,
            seed=seed,
        ),
        ForecasterConfig(hidden_size=hidden, scale=2.0),
        batch_size=batch_size,
    )


if __name__ == "__main__":
    main()

"""The command line of recipes passes on the given values, and each recipe's own defaults for the others."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("typer")

from models import command_line

RECIPES = ["morse", "co2", "stress", "pychar", "g2p", "translate"]


def recorded(*arguments: str) -> list[object]:
    """What is trained or evaluated."""
    found: list[object] = []

    def train(
        run: command_line.Run,
        epochs: command_line.Epochs = 7,
        batch_size: command_line.BatchSize = 16,
        seed: command_line.Seed = 0,
    ) -> None:
        found.extend([run, epochs, batch_size, seed])

    def evaluate(checkpoint: Path) -> None:
        found.append(checkpoint)

    with pytest.raises(SystemExit) as caught:
        command_line.run("models.recipes.some", "About it.", arguments, train=train, evaluate=evaluate)
    return found or [caught.value.code]


def test_a_recipe_is_trained_with_what_was_said() -> None:
    assert recorded("train", "--run", "runs/some", "--batch-size", "4") == [Path("runs/some"), 7, 4, 0]


def test_a_recipe_evaluates_a_checkpoint() -> None:
    assert recorded("evaluate", "best.safetensors") == [Path("best.safetensors")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["train"], "Missing option '--run'"),
        (["train", "--run", "a", "--epochs", "many"], "'--epochs'"),
        (["evaluate"], "Missing argument 'checkpoint'"),
        (["judge"], "No such command 'judge'"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recorded(*arguments) == [2]
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_has_help(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("statsmodels")
    pytest.importorskip("sacrebleu")

    monkeypatch.setattr("sys.argv", [recipe, "train", "--help"])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"models.recipes.{recipe}").main()
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"python -m models.recipes.{recipe} train" in said
    assert "--epochs N" in said
    assert ("--window N" in said) == (recipe == "pychar")

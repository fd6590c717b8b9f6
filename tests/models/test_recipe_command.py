"""The command line of recipes passes on the given values, and each recipe's own defaults for the others."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from models.recipes import command

RECIPES = ["morse", "co2", "stress", "pychar", "g2p", "translate"]


def told(*arguments: str) -> list[argparse.Namespace | Path]:
    """Runs the command line. Returns what it trains or evaluates."""
    found: list[argparse.Namespace | Path] = []
    command.run(
        "models.recipes.some",
        "About it.",
        numbers={"epochs": 7, "batch-size": 16},
        compared_with="nothing",
        train=found.append,
        evaluate=found.append,
        arguments=arguments,
    )
    return found


def test_a_recipe_is_trained_with_what_was_said() -> None:
    (parsed,) = told("train", "--run", "runs/some", "--batch-size", "4")
    assert isinstance(parsed, argparse.Namespace)
    assert (parsed.run, parsed.epochs, parsed.batch_size, parsed.seed) == (Path("runs/some"), 7, 4, 0)


def test_a_recipe_evaluates_a_checkpoint() -> None:
    assert told("evaluate", "best.safetensors") == [Path("best.safetensors")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_says_what_it_takes(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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

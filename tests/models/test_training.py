"""A killed training run resumes with the same result as an uninterrupted one, and a run without improvement stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tqdm")

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import training

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


class Killed(BaseException):
    """Simulates a kill during an epoch: no `except Exception` handles it."""


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Training is killed in the third epoch and called again. Its weights are bit-identical to those of an
    uninterrupted run."""
    whole = _train(tmp_path / "whole")
    with pytest.raises(Killed):
        _train(tmp_path / "killed", loss=_killed_after(2 * 5 + 3))
    assert len(_history(tmp_path / "killed")) == 2
    resumed = _train(tmp_path / "killed")
    assert resumed == whole
    for name in ("last.safetensors", "best.safetensors"):
        left, right = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert _history(tmp_path / "killed") == whole


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    """A call after the last epoch trains no more."""
    whole = _train(tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    assert _train(tmp_path, loss=_killed_after(0)) == whole
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_training_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    """With a patience of 2, training ends after two epochs in a row without a new best. The best weights are kept."""
    errors = iter([0.5, 0.4, 0.45, 0.41, 0.1])
    weights: list[Tensor] = []

    def validation_error(model: nn.Module) -> float:
        weights.append(next(model.parameters()).detach().clone())
        return next(errors)

    history = _train(tmp_path, validation_error=validation_error, patience=2, epochs=5)
    assert [entry.validation_error for entry in history] == [0.5, 0.4, 0.45, 0.41]
    kept, metadata = training.load_checkpoint(tmp_path / "best.safetensors")
    assert torch.equal(kept["0.weight"], weights[1])
    assert metadata["model"] == "tiny"
    assert _train(tmp_path, loss=_killed_after(0), patience=2, epochs=5) == history


def test_validation_uses_the_moving_average(tmp_path: Path) -> None:
    """Validation uses the averaged weights in evaluation mode. Training continues from the weights themselves."""
    seen: list[tuple[bool, Tensor]] = []

    def validation_error(model: nn.Module) -> float:
        seen.append((model.training, next(model.parameters()).detach().clone()))
        return 1.0

    _train(tmp_path, validation_error=validation_error, epochs=1)
    tensors = load_file(tmp_path / "last.safetensors")
    assert not seen[0][0]
    assert torch.equal(seen[0][1], tensors["average/0.weight"])
    assert not torch.equal(tensors["average/0.weight"], tensors["weights/0.weight"])


def test_training_learns(tmp_path: Path) -> None:
    """The loss decreases on a task that the model can learn."""
    history = _train(tmp_path, epochs=4)
    assert history[-1].training_loss < history[0].training_loss


def _history(run: Path) -> list[training.Epoch]:
    return [training.Epoch(**entry) for entry in json.loads((run / "history.json").read_text())]


def _train(
    run: Path,
    *,
    loss: Loss | None = None,
    validation_error: Callable[[nn.Module], float] | None = None,
    epochs: int = 4,
    patience: int = 6,
) -> list[training.Epoch]:
    """Trains a tiny regression with five batches an epoch. It has dropout, so that the random state matters."""
    torch.manual_seed(99)
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    return training.train(
        model,
        run=run,
        config=training.TrainingConfig(epochs=epochs, learning_rate=0.05, warmup_steps=3, patience=patience),
        batches=_batches,
        loss=loss or _loss,
        validation_error=validation_error or _error,
        metadata={"model": "tiny"},
    )


def _batches(epoch: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    inputs = torch.randn(5, 8, 3, generator=generator)
    return [(batch, batch.sum(dim=1, keepdim=True)) for batch in inputs]


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, expected = batch
    return nn.functional.mse_loss(model(inputs), expected)


def _killed_after(num_batches: int) -> Loss:
    left = [num_batches]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return _loss(model, batch)

    return loss


@torch.no_grad()
def _error(model: nn.Module) -> float:
    return float(_loss(model, _batches(1000)[0]))

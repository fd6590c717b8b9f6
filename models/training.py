"""A small training loop: seeded, resumable after a kill, with early stopping and averaged weights.

The recipe passes data, batches and evaluation as functions; the loop knows no task. A run is a folder:
`last.safetensors` (weights, their average, optimiser moments), `best.safetensors` (the averaged weights of the best
epoch) and `history.json`. All randomness of an epoch comes from (seed, epoch). So a run that was killed and resumed
gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train. learning_rate: the peak after warm-up; it decays as a cosine to a hundredth over `epochs`.
    average_decay: decay for each step of the exponential moving average of the weights, which is evaluated and saved.
    patience: training stops after this many epochs without a better validation error."""

    epochs: int = 28
    learning_rate: float = 1.5e-3
    warmup_steps: int = 500
    clip_norm: float = 1.0
    average_decay: float = 0.999
    patience: int = 6
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """One entry of a run's history. validation_error: the score that early stopping minimises."""

    epoch: int
    training_loss: float
    validation_error: float


def train(
    model: nn.Module,
    *,
    run: Path,
    config: TrainingConfig,
    batches: Callable[[int], list[Batch]],
    loss: Callable[[nn.Module, Batch], Tensor],
    validation_error: Callable[[nn.Module], float],
    metadata: dict[str, str],
) -> list[Epoch]:
    """Trains `model` and returns the history. Resumes the run in the folder `run` if there is an unfinished one.

    batches(epoch): that epoch's batches, shuffled by the recipe from (seed, epoch). loss(model, batch): a scalar.
    validation_error(model): called with the averaged weights. metadata: written into the header of every checkpoint.
    """
    run.mkdir(parents=True, exist_ok=True)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    history = _resume(run, model, average, optimizer)
    steps_per_epoch = len(batches(0))
    total_steps = config.epochs * steps_per_epoch

    for epoch in range(len(history), config.epochs):
        if _exhausted(history, config.patience):
            break
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        model.train()
        loss_sum = 0.0
        epoch_batches = batches(epoch)
        progress = tqdm(epoch_batches, desc=f"epoch {epoch + 1}/{config.epochs}", leave=False, mininterval=2.0)
        for index, batch in enumerate(progress):
            step = epoch * steps_per_epoch + index
            rate = config.learning_rate * _rate_factor(step, config.warmup_steps, total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(model, batch)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            decay = min(config.average_decay, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(model.parameters()), 1.0 - decay)
            loss_sum += value.item()
        with _weights_of(model, average):
            model.eval()
            error = validation_error(model)
        history.append(Epoch(epoch, loss_sum / len(epoch_batches), error))
        print(
            f"epoch {epoch + 1}: training loss {history[-1].training_loss:.4f}, validation error {error:.4f}",
            flush=True,
        )
        _save(run, model, average, optimizer, history, metadata)
    return history


def half_precision() -> torch.autocast:
    """Returns a context in which modules compute in bfloat16, if this processor supports it."""
    can = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # torch's own check; none is public
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=can)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the weights and the metadata of a `best.safetensors`."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return load_file(path), metadata


def load_trained(checkpoint: Path, name: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Returns a checkpoint's trained model, in evaluation mode. name: the recipe's model. build: makes a model from its
    sizes. Raises ValueError when the checkpoint belongs to another recipe."""
    weights, metadata = load_checkpoint(checkpoint)
    if metadata.get("model") != name:
        raise ValueError(f"{checkpoint} is a checkpoint of {metadata.get('model')!r}, not of {name!r}")
    model = build(json.loads(metadata["config"]))
    if weights.keys() != dict(model.named_parameters()).keys():  # lists a shared parameter once
        raise ValueError(f"{checkpoint} does not have the weights of {name!r}")
    model.load_state_dict(weights, strict=False)
    model.eval()
    return model


def write_evaluation(checkpoint: Path, found: dict[str, object]) -> dict[str, object]:
    """Writes a recipe's evaluation of a checkpoint to `evaluation.json` beside it. Prints and returns it."""
    result = {"checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), **found}
    (checkpoint.parent / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return result


class _weights_of:
    """Swaps a model's parameters for others during a `with` block."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self._model, self._weights = model, weights

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self._weights[name])
            self._weights[name].copy_(kept)


def _rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _exhausted(history: list[Epoch], patience: int) -> bool:
    if not history:
        return False
    best = min(history, key=lambda entry: entry.validation_error)
    return history[-1].epoch - best.epoch >= patience


def _save(  # noqa: PLR0917  # the whole state of a run
    run: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    history: list[Epoch],
    metadata: dict[str, str],
) -> None:
    header = {**metadata, "history": json.dumps([asdict(entry) for entry in history])}
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors[f"weights/{name}"] = parameter.detach()
        tensors[f"average/{name}"] = average[name]
        tensors[f"exp_avg/{name}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = moments["exp_avg_sq"]
        tensors[f"step/{name}"] = moments["step"]
    if history[-1].validation_error == min(entry.validation_error for entry in history):
        _replace(run / "best.safetensors", average, header)
    _replace(run / "last.safetensors", tensors, header)
    (run / "history.json").write_text(header["history"])


def _replace(path: Path, tensors: Iterable[tuple[str, Tensor]] | dict[str, Tensor], header: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in dict(tensors).items()}, partial, metadata=header)
    os.replace(partial, path)


def _resume(run: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Adam) -> list[Epoch]:
    path = run / "last.safetensors"
    if not path.exists():
        return []
    tensors, metadata = load_checkpoint(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weights/{name}"])
            average[name].copy_(tensors[f"average/{name}"])
            optimizer.state[parameter] = {
                "step": tensors[f"step/{name}"],
                "exp_avg": tensors[f"exp_avg/{name}"].clone(),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone(),
            }
    return [Epoch(**entry) for entry in json.loads(metadata["history"])]

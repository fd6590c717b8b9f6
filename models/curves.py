"""Draws the curves of a training run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from models.training import Epoch


def plot_curves(
    history: list[Epoch],
    path: Path,
    *,
    error_name: str,
    loss_name: str = "training loss (nats per token)",
    is_share: bool = True,
) -> None:
    """Draws training loss and validation error over the epochs, as a PNG. is_share: the error is a share, shown in
    %."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss_axis = figure.subplots()
    epochs = [entry.epoch + 1 for entry in history]
    loss_axis.plot(epochs, [entry.training_loss for entry in history], color="tab:blue", label="training loss")
    loss_axis.set(xlabel="epoch", ylabel=loss_name)
    error_axis = loss_axis.twinx()
    errors = [(100 if is_share else 1) * entry.validation_error for entry in history]
    unit = " %" if is_share else ""
    error_axis.plot(epochs, errors, color="tab:orange", marker=".", label=error_name)
    error_axis.set(ylabel=f"{error_name} (%)" if is_share else error_name)
    best = min(range(len(errors)), key=errors.__getitem__)
    error_axis.annotate(
        f"best: {errors[best]:.3g}{unit}",
        (epochs[best], errors[best]),
        xytext=(0, 14),
        textcoords="offset points",
        horizontalalignment="right",
        arrowprops={"arrowstyle": "-", "color": "tab:orange"},
    )
    figure.legend(loc="upper right", bbox_to_anchor=(0.88, 0.95))
    figure.savefig(path, dpi=120)

"""Turns modified recurrent layers into PyTorch's plain ones, with the weights that serving uses.

`export.exportable` runs its own layers in place of `nn.LSTM`, `nn.GRU` and `nn.RNN`, with the same weights. So a weight
that is computed before each run is computed once here, and a layer with its own `forward` is refused.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from export.errors import ExportError

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def plain(module: nn.Module, notes: list[str]) -> nn.Module:
    """Returns the module itself, in 32-bit floats and evaluation mode, with plain recurrent layers.

    notes: gets a line for each change. Raises ExportError for a recurrent layer with its own `forward`.
    """
    kinds = {str(one.dtype).removeprefix("torch.") for one in module.parameters()} - {"float32"}
    notes += [f"its weights are {kind}, but are served as float32" for kind in sorted(kinds)]
    module = module.float().eval()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase):
            notes += [f"{one} of {name or 'the module'} keeps its current value" for one in _computed_once(layer)]
            _check_forward(name, layer)
    return module


def _computed_once(layer: nn.RNNBase) -> list[str]:
    """Makes weights that are computed before each run constant, and returns their names."""
    found = []
    for hook in list(layer._forward_pre_hooks.values()):  # noqa: SLF001  # PyTorch has no public way to find them
        if isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
            found.append(hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
            found.append(hook.name)
    if parametrize.is_parametrized(layer):
        for name in list(layer.parametrizations):  # type: ignore[arg-type]  # iterating gives names
            parametrize.remove_parametrizations(layer, name)
            found.append(name)
    return found


def _check_forward(name: str, layer: nn.RNNBase) -> None:
    base = next((kind for kind in _KINDS if isinstance(layer, kind)), nn.RNNBase)
    if type(layer).forward is not base.forward:
        own = type(layer).__name__
        raise ExportError(
            f"{name or 'the module'} is a {own}, a subclass of nn.{base.__name__} with its own forward, but layers are"
            f" exported by their weights: make {own} an nn.Module that contains an nn.{base.__name__}, or use cells"
        )

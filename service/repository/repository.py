"""The model repository: scans and loads the folder of bundles. A bad bundle is reported and does not affect others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import InvalidFieldError, ModelNotFoundError, ModelUnavailableError, quoted
from service.repository.bundle import Bundle, BundleError, load_bundle
from service.repository.runtime import Runtimes

MAX_LISTED = 20
"""Most names in the list of a message."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""The pattern of model names, without the limit of length: a longer name is answered as one that does not exist."""
_NAME_LENGTH = 64
_VERSION = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A version that cannot be served, and the reason."""

    model: str
    version: int
    reason: str


@dataclass(slots=True)
class Repository:
    """The result of a scan: bundles that can be served, and problems, both by (model, version)."""

    folder: Path
    bundles: dict[tuple[str, int], Bundle] = field(default_factory=dict)
    problems: dict[tuple[str, int], Problem] = field(default_factory=dict)

    def find(self, model: str, version: int, *, within: str = "") -> Bundle:
        """Returns the bundle of a model. version: 0 for the newest version that is served. within: prefix of the field
        names in messages.

        Raises ModelNotFoundError, which lists what exists, InvalidFieldError for a name that no model can have, and
        ModelUnavailableError for a version that could not be loaded.
        """
        wanted = version or max((v for m, v in self.bundles if m == model), default=0)
        bundle = self.bundles.get((model, wanted))
        if bundle is not None:
            return bundle
        problem = self.problems.get((model, wanted)) if wanted else self._newest_problem(model)
        if problem is not None:
            raise ModelUnavailableError(
                f"model {quoted(model)} version {problem.version} could not be loaded: {problem.reason}",
                model=model,
                version=problem.version,
            )
        check_name(model, field=f"{within}model")
        versions = sorted(v for m, v in self.bundles if m == model)
        if versions:
            listed = ", ".join(map(str, versions[-MAX_LISTED:]))
            raise ModelNotFoundError(
                f"{within}version = {version} of model {quoted(model)} does not exist (available: {listed})",
                field=f"{within}version",
                model=model,
            )
        names = ", ".join(sorted({m for m, _ in self.bundles})[:MAX_LISTED]) or "none"
        raise ModelNotFoundError(
            f"{within}model = {quoted(model)} does not exist (available: {names})", field=f"{within}model", model=model
        )

    def has(self, model: str) -> bool:
        """Whether any version of a model exists, served or not."""
        return any(model == name for name, _ in (*self.bundles, *self.problems))

    def _newest_problem(self, model: str) -> Problem | None:
        found = [problem for (name, _), problem in self.problems.items() if name == model]
        return max(found, key=lambda problem: problem.version, default=None)


def check_name(model: str, *, field: str = "model") -> None:
    """Raises InvalidFieldError for a name that no model can have."""
    if not _NAME.fullmatch(model[: _NAME_LENGTH + 1]):
        raise InvalidFieldError(
            f"{field} = {quoted(model)} is not a model's name: 1 to {_NAME_LENGTH} of the characters a-z 0-9 . _ -,"
            " the first a letter or a digit",
            field=field,
        )


class RepositoryError(Exception):
    """A repository cannot be served with these settings. The message says why and names the setting."""


def look_at(folder: Path, runtimes: Runtimes) -> list[tuple[str, int]]:
    """Returns `versions_in(folder)`. Raises RepositoryError when `folder` is not a folder, cannot be read, or does not
    contain a model that `runtimes` names."""
    if not folder.is_dir():
        raise RepositoryError(f"models = {folder} is not a folder: name one with --models, or serve --example")
    try:
        there = versions_in(folder)
    except OSError as error:
        raise RepositoryError(f"models = {folder} cannot be read: {error.strerror}") from error
    models = {model for model, _ in there}
    for model in runtimes.by_model:
        if model not in models:
            names = ", ".join(sorted(models)) or "none"
            raise RepositoryError(f"model_runtimes: {model!r} is not in {folder} (available: {names})")
    return there


def versions_in(folder: Path) -> list[tuple[str, int]]:
    """Returns every `<model>/<version>/` in order. version must be a number without leading zeros; hidden entries are
    ignored. Raises OSError when a folder cannot be read, or is removed meanwhile."""
    return sorted(
        (model.name, int(version.name))
        for model in folder.iterdir()
        if model.is_dir() and not model.name.startswith(".")
        for version in model.iterdir()
        if version.is_dir() and _VERSION.fullmatch(version.name)
    )


def load_version(folder: Path, key: tuple[str, int], runtimes: Runtimes) -> Bundle | Problem:
    """Loads one version. Returns a Problem when a check fails."""
    model, version = key
    try:
        return load_bundle(folder / model / str(version), runtimes.of(model))
    except (BundleError, OSError, MemoryError) as error:  # OSError: the folder was removed meanwhile
        return Problem(model, version, str(error) or type(error).__name__)

"""The model repository: the folder of bundles, scanned and loaded. A bad bundle is reported and harms no other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ModelNotFoundError, ModelUnavailableError
from service.repository.bundle import Bundle, BundleError, load_bundle
from service.repository.runtime import Runtimes


@dataclass(frozen=True, slots=True)
class Problem:
    """A version that cannot be served, and why."""

    model: str
    version: int
    reason: str


@dataclass(slots=True)
class Repository:
    """What a scan found: bundles that can be served, and problems, both by (model, version)."""

    folder: Path
    bundles: dict[tuple[str, int], Bundle] = field(default_factory=dict)
    problems: dict[tuple[str, int], Problem] = field(default_factory=dict)

    def find(self, model: str, version: int) -> Bundle:
        """The bundle of a model; version 0 means the newest that is served.

        Raises ModelNotFoundError naming what there is, and ModelUnavailableError for one that could not be loaded.
        """
        wanted = version or max((v for m, v in self.bundles if m == model), default=0)
        bundle = self.bundles.get((model, wanted))
        if bundle is not None:
            return bundle
        problem = self.problems.get((model, wanted)) if wanted else self._newest_problem(model)
        if problem is not None:
            raise ModelUnavailableError(
                f"model {model!r} version {problem.version} could not be loaded: {problem.reason}",
                model=model,
                version=problem.version,
            )
        versions = sorted(v for m, v in self.bundles if m == model)
        if versions:
            listed = ", ".join(map(str, versions))
            raise ModelNotFoundError(
                f"version = {version} of model {model!r} does not exist: there is {listed}",
                field="version",
                model=model,
            )
        names = ", ".join(sorted({m for m, _ in self.bundles})) or "none"
        raise ModelNotFoundError(f"model = {model!r} does not exist: there is {names}", field="model", model=model)

    def _newest_problem(self, model: str) -> Problem | None:
        found = [problem for (name, _), problem in self.problems.items() if name == model]
        return max(found, key=lambda problem: problem.version, default=None)


class RepositoryError(Exception):
    """A repository cannot be served as it was asked; the message says why, naming the setting."""


def scan(folder: Path, runtimes: Runtimes | None = None) -> Repository:
    """Loads every version under `folder`.

    Raises RepositoryError when `folder` is not a folder, or lacks a model that `runtimes` names. Bundles that fail
    their checks become problems.
    """
    if not folder.is_dir():
        raise RepositoryError(f"models: {folder} is not a folder")
    runtimes = runtimes or Runtimes()
    repository = Repository(folder)
    for key in versions_in(folder):
        found = load_version(folder, key, runtimes)
        if isinstance(found, Bundle):
            repository.bundles[key] = found
        else:
            repository.problems[key] = found
    there_are = {model for model, _ in (*repository.bundles, *repository.problems)}
    for model in runtimes.by_model:
        if model not in there_are:
            names = ", ".join(sorted(there_are)) or "none"
            raise RepositoryError(f"model_runtimes: {model!r} is not in {folder}: there is {names}")
    return repository


def versions_in(folder: Path) -> list[tuple[str, int]]:
    """Every `<model>/<version>/`, where version is a number, in order; hidden entries are passed over."""
    return sorted(
        (model.name, int(version.name))
        for model in folder.iterdir()
        if model.is_dir() and not model.name.startswith(".")
        for version in model.iterdir()
        if version.is_dir() and version.name.isdecimal()
    )


def load_version(folder: Path, key: tuple[str, int], runtimes: Runtimes) -> Bundle | Problem:
    """One version; a problem when it fails its checks."""
    model, version = key
    try:
        return load_bundle(folder / model / str(version), runtimes.of(model))
    except BundleError as error:
        return Problem(model, version, str(error))

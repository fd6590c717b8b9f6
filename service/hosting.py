"""The versions of models that are served, each with the engines that run it; they come and go while the server runs.

Rules:

1. A version that cannot be loaded replaces nothing, and is told of as a problem.
2. A version that is served no more keeps its engines for as long as there are sessions with it.
3. What is loaded is not looked at again: a bundle never changes, a new one has a new version.

Event loop only, but for what blocks, which is done aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from service.engine.engine import Engine
from service.errors import ModelNotFoundError
from service.observer import ModelObserver
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT
from service.repository.repository import Problem, Repository, load_version, scan, versions_in
from service.repository.runtime import Runtimes
from service.sessions.session import Served

Key = tuple[str, int]
"""A model and a version."""


class Hosting:
    """Loads, finds and lets go. make_engine(bundle, variant): one that is not started; count(key): sessions with a
    version."""

    def __init__(
        self,
        folder: Path,
        runtimes: Runtimes,
        observer: ModelObserver,
        *,
        make_engine: Callable[[Bundle, str], Engine],
        count: Callable[[Key], int],
    ) -> None:
        self.repository = Repository(folder)
        self._runtimes = runtimes
        self._observer = observer
        self._make_engine = make_engine
        self._count = count
        self._served: dict[tuple[str, int, str], Served] = {}
        self._leaving: dict[Key, list[Engine]] = {}
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Loads what the repository has. Raises RepositoryError."""
        found = await asyncio.to_thread(scan, self.repository.folder, self._runtimes)
        for problem in found.problems.values():
            self._note(problem)
        for bundle in found.bundles.values():
            await self._serve(bundle)

    async def stop(self) -> None:
        """Ends every engine."""
        engines = [served.engine for served in self._served.values()]
        for engine in (*engines, *(one for some in self._leaving.values() for one in some)):
            await asyncio.to_thread(engine.stop)

    def find(self, model: str, version: int, variant: str) -> Served:
        """What serves a model: the newest version for 0, the base for no variant. Raises ModelNotFoundError and
        ModelUnavailableError."""
        bundle = self.repository.find(model, version)
        served = self._served.get((bundle.model, bundle.version, variant or BASE_VARIANT))
        if served is None:
            raise ModelNotFoundError(
                f"variant = {variant!r} of model {bundle.model!r} version {bundle.version} does not exist: there is"
                f" {', '.join(bundle.variants)}",
                field="variant",
                model=bundle.model,
                version=bundle.version,
            )
        return served

    async def load(self, model: str = "", version: int = 0) -> list[Bundle | Problem]:
        """Loads versions of the folder that are not served: of one model, or of all when it is empty; one, or all for
        0. Returns those that it has looked at, in order, and those that were served already.

        Raises ModelNotFoundError when the folder has no such version.
        """
        async with self._loading:
            there = await asyncio.to_thread(versions_in, self.repository.folder)
            wanted = [key for key in there if model in ("", key[0]) and version in (0, key[1])]
            if not wanted and (model or version):
                told = ", ".join(f"{name}/{number}" for name, number in there) or "none"
                raise ModelNotFoundError(
                    f"model = {model!r}, version = {version}: the repository has no such version, it has {told}",
                    field="model",
                    model=model,
                )
            found: list[Bundle | Problem] = []
            for key in wanted:
                bundle = self.repository.bundles.get(key)
                found.append(bundle if bundle is not None else await self._load(key))
            return found

    async def unload(self, model: str, version: int) -> int:
        """Serves a version no more. Returns how many sessions are still with it. Raises ModelNotFoundError and
        ModelUnavailableError."""
        if version == 0:
            raise ModelNotFoundError("version = 0: which one is to be unloaded must be said", field="version")
        bundle = self.repository.find(model, version)
        key = (bundle.model, bundle.version)
        del self.repository.bundles[key]
        self._leaving[key] = [self._served.pop((*key, variant)).engine for variant in bundle.variants]
        self._observer.model_unloaded(*key)
        await self.reap()
        return self._count(key)

    async def reap(self) -> None:
        """Ends the engines of versions that are served no more and have no session left."""
        for key in [key for key in self._leaving if not self._count(key)]:
            for engine in self._leaving.pop(key):
                await asyncio.to_thread(engine.stop)

    async def _load(self, key: Key) -> Bundle | Problem:
        found = await asyncio.to_thread(load_version, self.repository.folder, key, self._runtimes)
        if isinstance(found, Problem):
            self._note(found)
        else:
            await self._serve(found)
        return found

    async def _serve(self, bundle: Bundle) -> None:
        engines = {variant: self._make_engine(bundle, variant) for variant in bundle.variants}
        for engine in engines.values():
            await asyncio.to_thread(engine.start)
        key = (bundle.model, bundle.version)
        for variant, engine in engines.items():
            self._served[*key, variant] = Served(bundle, engine, variant)
        self.repository.problems.pop(key, None)
        self.repository.bundles[key] = bundle
        self._observer.model_loaded(*key, list(engines))

    def _note(self, problem: Problem) -> None:
        key = (problem.model, problem.version)
        if self.repository.problems.get(key) != problem:
            self.repository.problems[key] = problem
            self._observer.model_failed(*key, problem.reason)

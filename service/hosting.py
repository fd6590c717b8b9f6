"""The versions of models that are served, each with the engines that run it. Versions are loaded and unloaded while the
server runs.

Rules:

1. A version that cannot be loaded, or whose engines cannot start, replaces nothing and is reported as a problem.
2. An unloaded version keeps its engines while a session uses one of them. Engines are counted, not versions: a version
   may be unloaded, loaded and unloaded again while sessions still use its first engines.
3. A loaded bundle is not read again: a bundle never changes, and a new bundle has a new version.
4. An unloaded version stays unloaded, also when `look` scans the folder, until `load` asks for it or its manifest is
   replaced by another file. A scan decides this for each version when its turn comes: loads before it take time.
5. A version that is new while the server runs is first tried in its own process: see `trial`. Versions that the server
   has served before, and those present at its start, are not tried.
6. A version that failed is not loaded again by `look` until a file of its bundle changes, or an operator asks.
7. Loads run one after another. Each runs to its end, also when its caller is cancelled, so that a started engine always
   has an owner.

Event loop only, except blocking work, which runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from service.engine.engine import Engine
from service.errors import InvalidFieldError, ModelNotFoundError, ModelUnavailableError, quoted
from service.observer import ModelObserver
from service.repository.bundle import Bundle
from service.repository.files import Stamp, stamps_of
from service.repository.manifest import BASE_VARIANT, FILE_NAME
from service.repository.repository import (
    MAX_LISTED,
    Problem,
    Repository,
    check_name,
    load_version,
    look_at,
    versions_in,
)
from service.repository.runtime import Runtimes
from service.sessions.served import Served

Key = tuple[str, int]
"""Model and version."""
Result = TypeVar("Result")
Attempt = Callable[[Key, Callable[[], bool]], Problem | None]
"""Tries a version. Returns why it cannot be served, or None. The second argument returns whether the trial is still
wanted."""


class _Leaving(NamedTuple):
    """The engines of one load of an unloaded version."""

    key: Key
    engines: list[Engine]


class Hosting:
    """Loads, finds and unloads versions. make_engine(bundle, variant): makes an engine without starting it.
    num_sessions(engine): how many sessions use the engine, including those that are being opened on it. attempt: called
    in a thread; may block."""

    def __init__(
        self,
        folder: Path,
        runtimes: Runtimes,
        observer: ModelObserver,
        *,
        make_engine: Callable[[Bundle, str], Engine],
        num_sessions: Callable[[Engine], int],
        attempt: Attempt = lambda key, is_wanted: None,
    ) -> None:
        self.repository = Repository(folder)
        self._runtimes = runtimes
        self._observer = observer
        self._make_engine = make_engine
        self._num_sessions = num_sessions
        self._attempt = attempt
        self._served: dict[tuple[str, int, str], Served] = {}
        self._leaving: list[_Leaving] = []
        self._unloaded: dict[Key, Stamp] = {}
        self._failed: dict[Key, frozenset[Stamp]] = {}
        self._loading = asyncio.Lock()
        self._starting: Key | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._is_folder_lost = False
        self._is_stopping = False

    async def start(self) -> None:
        """Loads the versions in the folder. Raises RepositoryError. If cancelled, ends after the current version."""
        folder = self.repository.folder
        there = await asyncio.to_thread(look_at, folder, self._runtimes)
        await self._to_the_end(self._load_all(there, is_tried=False))
        if not self.repository.bundles and not self._is_stopping:
            self._observer.nothing_served(str(folder.resolve()), len(there))

    async def stop(self) -> None:
        """Stops every engine after loads in progress have ended."""
        self._is_stopping = True
        while self._work:
            await asyncio.wait(self._work)
        engines = self.engines
        self._leaving.clear()
        await asyncio.to_thread(_stop_all, engines)

    @property
    def engines(self) -> list[Engine]:
        """The engines of all served versions, and those of unloaded versions that sessions still use."""
        leaving = [engine for group in self._leaving for engine in group.engines]
        return [*(served.engine for served in self._served.values()), *leaving]

    def known(self, model: str) -> str:
        """Returns the model's name if any version of it exists, served or not, else "". Clients may send any name."""
        return model if self.repository.has(model) else ""

    def find(self, model: str, version: int, variant: str, *, within: str = "") -> Served:
        """Returns the bundle and the engine for a model. version: 0 for the newest. variant: "" for the base. within:
        prefix of the field names in messages. Raises ModelNotFoundError, InvalidFieldError, ModelUnavailableError."""
        bundle = self.repository.find(model, version, within=within)
        served = self._served.get((bundle.model, bundle.version, variant or BASE_VARIANT))
        if served is None:
            raise ModelNotFoundError(
                f"{within}variant = {quoted(variant)} of model {bundle.model!r} version {bundle.version} does not"
                f" exist (available: {', '.join(bundle.variants)})",
                field=f"{within}variant",
                model=bundle.model,
                version=bundle.version,
            )
        return served

    def num_batches(self) -> int:
        """Returns the number of batches that the engines have run; a burst counts as one."""
        seen = [served.engine.statistics for served in self._served.values()]
        return sum(one.num_inline + one.num_threaded for one in seen)

    async def load(self, model: str = "", version: int = 0) -> list[Bundle | Problem]:
        """Loads versions in the folder that are not served. model: "" for all models. version: 0 for all versions.
        Returns, in order, the results of these loads and the bundles that were served already.

        Raises ModelNotFoundError when the folder has no such version, InvalidFieldError for a name that no model can
        have, and ModelUnavailableError when the folder cannot be read.
        """
        try:
            there = await asyncio.to_thread(versions_in, self.repository.folder)
        except OSError as error:
            raise ModelUnavailableError(f"the folder of models cannot be read now: {error.strerror}") from error
        wanted = [key for key in there if model in ("", key[0]) and version in (0, key[1])]
        if not wanted and (model or version):
            if model:
                check_name(model)
            listed = ", ".join(f"{name}/{number}" for name, number in there[:MAX_LISTED]) or "none"
            raise ModelNotFoundError(
                f"model = {quoted(model)}, version = {version}: the repository has no such version (available:"
                f" {listed})",
                field="model",
                model=model,
            )
        return await self._to_the_end(self._load_all(wanted))

    async def look(self, *, is_asked: bool = False) -> None:
        """Loads new versions in the folder. Loads a version that was unloaded only when its manifest is another file.
        Loads a version that failed only when a file of its bundle changed, or when an operator asked for this scan
        (is_asked). Reports a folder that cannot be read once, until it can be read again."""
        try:
            there = await asyncio.to_thread(versions_in, self.repository.folder)
        except OSError as error:
            if not self._is_folder_lost:
                self._is_folder_lost = True
                self._observer.repository_lost(str(error))
            return
        if self._is_folder_lost:
            self._is_folder_lost = False
            self._observer.repository_found()
        passed_over = (self._unloaded,) if is_asked else (self._unloaded, self._failed)
        await self._to_the_end(self._load_all(there, passed_over))

    async def unload(self, model: str, version: int) -> int:
        """Stops serving a version. Returns how many sessions still use it, also if it was unloaded before, so that a
        call can be retried. Raises ModelNotFoundError, InvalidFieldError and ModelUnavailableError."""
        check_name(model)
        if version == 0:
            raise InvalidFieldError("version = 0 must be 1 or more: set the version", field="version")
        key = (model, version)
        if key in self.repository.bundles or key not in self._unloaded:
            bundle = self.repository.find(model, version)
            del self.repository.bundles[key]
            engines = [self._served.pop((*key, variant)).engine for variant in bundle.variants]
            self._leaving.append(_Leaving(key, engines))
            self._unloaded[key] = bundle.stamp
            self._observer.model_unloaded(*key)
        count = sum(self._num_sessions(one) for group in self._leaving if group.key == key for one in group.engines)
        await self.reap()
        return count

    async def reap(self) -> None:
        """Stops the engines of unloaded versions that no session uses any more."""
        unused = [group for group in self._leaving if not any(map(self._num_sessions, group.engines))]
        if not unused:
            return
        # Before the first await: nothing else stops these engines, and `find` does not return them since the unload.
        self._leaving = [group for group in self._leaving if group not in unused]
        await self._to_the_end(self._stop(unused))

    async def _stop(self, groups: Sequence[_Leaving]) -> None:
        await asyncio.to_thread(_stop_all, [engine for group in groups for engine in group.engines])
        used = {*self.repository.bundles, *(group.key for group in self._leaving), self._starting}
        for key in {group.key for group in groups} - used:
            self._observer.model_dropped(*key)

    async def _to_the_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits work that continues when the caller is cancelled. `stop` waits for it."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_report)
            raise

    async def _load_all(
        self,
        wanted: Collection[Key],
        passed_over: Collection[Mapping[Key, object]] = (),
        *,
        is_tried: bool = True,
    ) -> list[Bundle | Problem]:
        """Loads the wanted versions that are not served, except those that still have a stamp of `passed_over`."""
        found: list[Bundle | Problem] = []
        async with self._loading:
            for key in wanted:
                if (bundle := self.repository.bundles.get(key)) is not None:
                    found.append(bundle)
                    continue
                folder = self.repository.folder / key[0] / str(key[1])
                manifest, files = await asyncio.to_thread(stamps_of, folder, FILE_NAME)
                is_known = any(stamps.get(key) in (manifest, files) for stamps in passed_over)
                is_new = is_tried and self._unloaded.get(key) != manifest
                if not is_known and not self._is_stopping:
                    found.append(await self._load(key, files, is_tried=is_new))
        return found

    async def _load(self, key: Key, files: frozenset[Stamp], *, is_tried: bool) -> Bundle | Problem:
        self._starting = key
        try:
            found = await asyncio.to_thread(self._read, key, is_tried=is_tried)
            if isinstance(found, Bundle):
                found = await self.serve(found)
        finally:
            self._starting = None
        if isinstance(found, Problem):
            self._failed[key] = files
            if self.repository.problems.get(key) != found:
                self.repository.problems[key] = found
                self._observer.model_failed(*key, found.reason)
        return found

    def _read(self, key: Key, *, is_tried: bool) -> Bundle | Problem:
        """Loads a version after its trial, if it needs one. Runs in a thread."""
        problem = self._attempt(key, lambda: not self._is_stopping) if is_tried else None
        return problem or load_version(self.repository.folder, key, self._runtimes)

    async def serve(self, bundle: Bundle) -> Bundle | Problem:
        """Starts the engines of a version: either all of them, or none, with a problem as the result."""
        engines: dict[str, Engine] = {}
        try:
            for variant in bundle.variants:
                engines[variant] = self._make_engine(bundle, variant)
            await asyncio.to_thread(_start_all, list(engines.values()))
        except Exception as error:  # from ONNX Runtime, which runs the graphs here for the first time, or out of memory
            return Problem(bundle.model, bundle.version, f"its engine cannot start: {error or type(error).__name__}")
        key = (bundle.model, bundle.version)
        for variant, engine in engines.items():
            self._served[*key, variant] = Served(bundle, engine, variant)
        self._unloaded.pop(key, None)
        self._failed.pop(key, None)
        self.repository.problems.pop(key, None)
        self.repository.bundles[key] = bundle
        self._observer.model_loaded(*key, list(engines))
        return bundle


def _report(task: asyncio.Task[Any]) -> None:
    """Passes the error of work whose caller was cancelled to the event loop, which logs it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        message = "a load or unload failed after its call was cancelled"
        task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})


def _start_all(engines: Sequence[Engine]) -> None:
    """Starts engines. When one cannot start, stops those before it and raises."""
    for place, engine in enumerate(engines):
        try:
            engine.start()
        except BaseException:
            _stop_all(engines[:place])
            raise


def _stop_all(engines: Sequence[Engine]) -> None:
    """Stops all engines, also when some cannot be stopped. Raises the last error."""
    failure: BaseException | None = None
    for engine in engines:
        try:
            engine.stop()
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure

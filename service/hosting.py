"""The versions of models that are served, each with the engines that run it; they come and go while the server runs.

Rules:

1. A version that cannot be loaded, or whose engines cannot start, replaces nothing and is reported as a problem.
2. An unloaded version keeps its engines for as long as a session uses one of them. Engines are counted, not versions: a
   version may be unloaded, loaded and unloaded again while sessions still use its first engines.
3. A loaded bundle is not read again: a bundle never changes, a new one has a new version.
4. A version that was unloaded stays unloaded, also for who watches the folder, until somebody asks for it by `load`,
   or until its manifest is another file.
5. A version that is new while the server runs is tried first, in a process of its own: see `trial`. One that took too
   much there is not tried again by who watches the folder, until its manifest is another file. What the server has
   served before, and what it starts with, is not tried.
6. Loads run one after another, and each to its end, also when its caller has gone: a started engine always has an
   owner.

Event loop only, but for what blocks, which runs in a thread.
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
from service.repository.manifest import BASE_VARIANT
from service.repository.repository import (
    Problem,
    Repository,
    Stamp,
    TakesTooMuch,
    check_name,
    load_version,
    look_at,
    stamps_in,
)
from service.repository.runtime import Runtimes
from service.sessions.served import Served

Key = tuple[str, int]
"""A model and a version."""
_LISTED = 20
Result = TypeVar("Result")
Attempt = Callable[[Key, Callable[[], bool]], Problem | None]
"""Tries a version, for as long as the second argument says that it is wanted; returns why it cannot be served."""


class _Leaving(NamedTuple):
    """The engines of one load of a version that has been unloaded."""

    key: Key
    engines: list[Engine]


class Hosting:
    """Loads, finds and unloads versions. make_engine(bundle, variant): an engine that is not started;
    num_sessions(engine): how many sessions use it, those that are being opened on it with them; attempt: blocks, and is
    called in a thread."""

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
        self._too_much: dict[Key, Stamp] = {}
        self._stamps: dict[Key, Stamp] = {}
        self._loading = asyncio.Lock()
        self._starting: Key | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._is_folder_lost = False
        self._is_stopping = False

    async def start(self) -> None:
        """Loads the versions of the folder. Raises RepositoryError. Cancelling it ends it after the version in hand."""
        folder = self.repository.folder
        there = await asyncio.to_thread(look_at, folder, self._runtimes)
        await self._to_the_end(self._load_all(there, there, is_tried=False))
        if not self.repository.bundles and not self._is_stopping:
            self._observer.nothing_served(str(folder.resolve()), len(there))

    async def stop(self) -> None:
        """Stops every engine, once a load that is in progress has ended."""
        self._is_stopping = True
        while self._work:
            await asyncio.wait(self._work)
        engines = [served.engine for served in self._served.values()]
        engines += [engine for group in self._leaving for engine in group.engines]
        self._leaving.clear()
        await asyncio.to_thread(_stop_all, engines)

    def known(self, model: str) -> str:
        """The name of a model, if there is a version of it, served or not; else empty: clients may send any name."""
        return model if self.repository.has(model) else ""

    def find(self, model: str, version: int, variant: str, *, within: str = "") -> Served:
        """The bundle and the engine for a model: the newest version for 0, the base for no variant. within: in front of
        the request's fields. Raises ModelNotFoundError, InvalidFieldError and ModelUnavailableError."""
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
        """How many batches the engines have run."""
        seen = [served.engine.statistics for served in self._served.values()]
        return sum(one.num_inline + one.num_threaded for one in seen)

    async def load(self, model: str = "", version: int = 0) -> list[Bundle | Problem]:
        """Loads versions of the folder that are not served: of one model, or of all when it is empty; one, or all for
        0. Returns those that it has looked at, in order, and those that were served already.

        Raises ModelNotFoundError when the folder has no such version, InvalidFieldError for what no model can be
        called, ModelUnavailableError when the folder cannot be read.
        """
        try:
            there = await asyncio.to_thread(stamps_in, self.repository.folder)
        except OSError as error:
            raise ModelUnavailableError(
                f"the folder of models cannot be read now: {error.strerror}", model=model, version=version
            ) from error
        wanted = [key for key in there if model in ("", key[0]) and version in (0, key[1])]
        if not wanted and (model or version):
            if model:
                check_name(model)
            listed = ", ".join(f"{name}/{number}" for name, number in list(there)[:_LISTED]) or "none"
            raise ModelNotFoundError(
                f"model = {quoted(model)}, version = {version}: the repository has no such version (available:"
                f" {listed})",
                field="model",
                model=model,
            )
        return await self._to_the_end(self._load_all(wanted, there))

    async def look(self) -> None:
        """Loads what the folder has of new versions; one that was unloaded, or took too much when it was tried, only
        when its manifest is another file. A folder that cannot be read is reported once, until it can."""
        try:
            there = await asyncio.to_thread(stamps_in, self.repository.folder)
        except OSError as error:
            if not self._is_folder_lost:
                self._is_folder_lost = True
                self._observer.repository_lost(str(error))
            return
        if self._is_folder_lost:
            self._is_folder_lost = False
            self._observer.repository_found()
        known = (*self._unloaded.items(), *self._too_much.items())
        passed_over = [key for key, stamp in known if there.get(key) in (stamp, None)]
        await self._to_the_end(self._load_all(there, there, passed_over))

    async def unload(self, model: str, version: int) -> int:
        """Stops serving a version. Returns how many sessions still use it, also when it was unloaded before: a call may
        be sent again. Raises ModelNotFoundError, InvalidFieldError and ModelUnavailableError."""
        check_name(model)
        if version == 0:
            raise InvalidFieldError("version = 0 must be 1 or more: set the version", field="version")
        key = (model, version)
        if key in self.repository.bundles or key not in self._unloaded:
            bundle = self.repository.find(model, version)
            del self.repository.bundles[key]
            engines = [self._served.pop((*key, variant)).engine for variant in bundle.variants]
            self._leaving.append(_Leaving(key, engines))
            self._unloaded[key] = self._stamps.pop(key)
            self._observer.model_unloaded(*key)
        count = sum(self._num_sessions(one) for group in self._leaving if group.key == key for one in group.engines)
        await self.reap()
        return count

    async def reap(self) -> None:
        """Stops the engines of unloaded versions that no session uses any more."""
        unused = [group for group in self._leaving if not any(map(self._num_sessions, group.engines))]
        if not unused:
            return
        # before anything is awaited: nobody else stops them, and `find` has not given them away since they left
        self._leaving = [group for group in self._leaving if group not in unused]
        await self._to_the_end(self._stop(unused))

    async def _stop(self, groups: Sequence[_Leaving]) -> None:
        await asyncio.to_thread(_stop_all, [engine for group in groups for engine in group.engines])
        used = {*self.repository.bundles, *(group.key for group in self._leaving), self._starting}
        for key in {group.key for group in groups} - used:
            self._observer.model_dropped(*key)

    async def _to_the_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits work that goes on when this is cancelled. `stop` waits for it."""
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
        there: Mapping[Key, Stamp],
        passed_over: Collection[Key] = (),
        *,
        is_tried: bool = True,
    ) -> list[Bundle | Problem]:
        found: list[Bundle | Problem] = []
        async with self._loading:
            for key in wanted:
                if key in passed_over or self._is_stopping:
                    continue
                bundle = self.repository.bundles.get(key)
                is_new = is_tried and self._unloaded.get(key) != there[key]
                found.append(bundle if bundle is not None else await self._load(key, there[key], is_tried=is_new))
        return found

    async def _load(self, key: Key, stamp: Stamp, *, is_tried: bool) -> Bundle | Problem:
        self._starting = key
        try:
            found = await asyncio.to_thread(self._read, key, is_tried=is_tried)
            if isinstance(found, TakesTooMuch):
                self._too_much[key] = stamp
            if isinstance(found, Bundle):
                found = await self._serve(found, stamp)
        finally:
            self._starting = None
        if isinstance(found, Problem):
            self._note(found)
        return found

    def _read(self, key: Key, *, is_tried: bool) -> Bundle | Problem:
        """Loads a version, once its trial is over. In a thread."""
        problem = self._attempt(key, lambda: not self._is_stopping) if is_tried else None
        return problem or load_version(self.repository.folder, key, self._runtimes)

    async def _serve(self, bundle: Bundle, stamp: Stamp) -> Bundle | Problem:
        """Starts the engines of a version: all of them, or none and a problem."""
        engines: dict[str, Engine] = {}
        try:
            for variant in bundle.variants:
                engines[variant] = self._make_engine(bundle, variant)
            await asyncio.to_thread(_start_all, list(engines.values()))
        except (
            Exception
        ) as error:  # of ONNX Runtime, which runs the graphs here for the first time, or for want of memory
            return Problem(bundle.model, bundle.version, f"its engine cannot start: {error or type(error).__name__}")
        key = (bundle.model, bundle.version)
        for variant, engine in engines.items():
            self._served[*key, variant] = Served(bundle, engine, variant)
        self._stamps[key] = stamp
        self._unloaded.pop(key, None)
        self._too_much.pop(key, None)
        self.repository.problems.pop(key, None)
        self.repository.bundles[key] = bundle
        self._observer.model_loaded(*key, list(engines))
        return bundle

    def _note(self, problem: Problem) -> None:
        key = (problem.model, problem.version)
        if self.repository.problems.get(key) != problem:
            self.repository.problems[key] = problem
            self._observer.model_failed(*key, problem.reason)


def _report(task: asyncio.Task[Any]) -> None:
    """Hands the error of work whose caller has gone to the event loop, which logs it."""
    if not task.cancelled() and task.exception() is not None:
        context = {"message": "work that nobody waits for failed", "exception": task.exception(), "task": task}
        task.get_loop().call_exception_handler(context)


def _start_all(engines: Sequence[Engine]) -> None:
    """Starts engines; when one cannot start, stops those before it and raises."""
    for place, engine in enumerate(engines):
        try:
            engine.start()
        except BaseException:
            _stop_all(engines[:place])
            raise


def _stop_all(engines: Sequence[Engine]) -> None:
    """Stops engines, each of them also when another cannot be stopped. Raises what the last of those raised."""
    failure: BaseException | None = None
    for engine in engines:
        try:
            engine.stop()
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure

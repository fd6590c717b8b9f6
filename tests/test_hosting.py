"""Versions are loaded and unloaded in any order and at any moment; each engine is stopped once, after its last
session."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from service.engine.engine import Engine
from service.errors import ModelNotFoundError, ModelUnavailableError
from service.hosting import Hosting
from service.repository.bundle import Bundle
from service.repository.repository import Problem, RepositoryError
from service.repository.runtime import RuntimeOptions, Runtimes
from tests.bundles import write_language_model
from tests.waiting import turns, until


class FakeEngine:
    """An engine that counts its starts and stops. gate: an event that `start` waits for. failure: what `start`
    raises."""

    def __init__(self, bundle: Bundle, variant: str) -> None:
        self.bundle, self.variant = bundle, variant
        self.num_starts = self.num_stops = 0
        self.gate: threading.Event | None = None
        self.failure: Exception | None = None

    def start(self) -> None:
        """Waits for the gate, then raises the failure or counts a start."""
        if self.gate is not None:
            self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.num_starts += 1

    def stop(self) -> None:
        """Counts a stop."""
        self.num_stops += 1


class Observer:
    """Records the reports that it receives."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *facts: self.heard.append((name, *facts))

    def count(self, name: str) -> int:
        """Returns how often it received a report of this name."""
        return sum(one[0] == name for one in self.heard)


class Scene:
    """A `Hosting` of a folder, with fake engines.

    uses: the number of sessions of each engine. prepare: is called with each new engine. tried: the versions for which
    a trial ran. problem: the result of each trial. gate: an event that trials wait for.
    """

    def __init__(self, folder: Path, runtimes: Runtimes | None = None) -> None:
        self.folder = folder
        self.engines: list[FakeEngine] = []
        self.made = asyncio.Event()
        self.uses: Counter[FakeEngine] = Counter()
        self.observer = Observer()
        self.prepare: Callable[[FakeEngine], None] = lambda engine: None
        self.tried: list[tuple[str, int]] = []
        self.problem: Problem | None = None
        self.gate: threading.Event | None = None
        self.hosting = Hosting(
            folder,
            runtimes or Runtimes(),
            cast(Any, self.observer),
            make_engine=self._make,
            num_sessions=lambda engine: self.uses[cast(FakeEngine, engine)],
            attempt=self._attempt,
        )

    def _make(self, bundle: Bundle, variant: str) -> Engine:
        engine = FakeEngine(bundle, variant)
        self.prepare(engine)
        self.engines.append(engine)
        self.made.set()
        return cast(Engine, engine)

    def _attempt(self, key: tuple[str, int], is_wanted: Callable[[], bool]) -> Problem | None:
        assert threading.current_thread() is not threading.main_thread(), "it takes its time"
        assert is_wanted()
        self.tried.append(key)
        if self.gate is not None:
            self.gate.wait(10)
        return self.problem

    def engine(self, model: str = "lm", version: int = 1, variant: str = "") -> FakeEngine:
        """Returns the engine that a new session would get."""
        return cast(FakeEngine, self.hosting.find(model, version, variant).engine)

    def stops(self) -> list[int]:
        """Returns how often each engine was stopped, in the order in which the engines were made."""
        return [engine.num_stops for engine in self.engines]


def replace_manifest(folder: Path) -> None:
    """Replaces a bundle's manifest by another file with the same content."""
    (folder / "manifest.json").rename(folder / "kept.json")
    (folder / "manifest.json").write_bytes((folder / "kept.json").read_bytes())


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    write_language_model(tmp_path, model="lm")
    return Scene(tmp_path)


async def test_an_unloaded_version_keeps_its_engine_for_as_long_as_a_session_uses_it(scene: Scene) -> None:
    await scene.hosting.start()
    scene.uses[scene.engine()] = 2
    assert await scene.hosting.unload("lm", 1) == 2
    assert await scene.hosting.unload("lm", 1) == 2, "a call may be sent again"
    with pytest.raises(ModelNotFoundError):
        scene.engine()
    with pytest.raises(ModelNotFoundError):
        await scene.hosting.unload("lm", 2)
    await scene.hosting.reap()
    assert scene.stops() == [0]
    scene.uses.clear()
    await scene.hosting.reap()
    await scene.hosting.reap()
    assert scene.stops() == [1]
    assert scene.observer.heard[-1] == ("model_dropped", "lm", 1)


async def test_unload_load_unload_stops_every_engine_once(scene: Scene) -> None:
    """While sessions still use the first engine, the end of the second one does not drop the version."""
    await scene.hosting.start()
    scene.uses[scene.engine()] = 1
    await scene.hosting.unload("lm", 1)
    await scene.hosting.load("lm", 1)
    scene.uses[scene.engine()] = 1
    assert await scene.hosting.unload("lm", 1) == 2, "of both loads"
    scene.uses[scene.engines[1]] = 0
    await scene.hosting.reap()
    assert scene.stops() == [0, 1]
    assert scene.observer.count("model_dropped") == 0, "sessions still use the version"
    scene.uses[scene.engines[0]] = 0
    await scene.hosting.reap()
    assert scene.stops() == [1, 1]
    assert scene.observer.count("model_dropped") == 1
    await scene.hosting.stop()
    assert scene.stops() == [1, 1]


async def test_a_version_that_is_served_again_is_not_dropped_with_its_first_engine(scene: Scene) -> None:
    await scene.hosting.start()
    scene.uses[scene.engine()] = 1
    await scene.hosting.unload("lm", 1)
    await scene.hosting.load("lm", 1)
    scene.uses.clear()
    await scene.hosting.reap()
    assert scene.stops() == [1, 0]
    assert scene.observer.count("model_dropped") == 0


async def test_an_engine_that_cannot_start_is_a_problem_and_stops_the_engines_before_it(tmp_path: Path) -> None:
    write_language_model(tmp_path, model="heads", bos_id=1, has_heads=True, variants={"other": 3})
    write_language_model(tmp_path, model="lm")
    scene = Scene(tmp_path)

    def prepare(engine: FakeEngine) -> None:
        if engine.variant == "other":
            engine.failure = RuntimeError("no memory left")

    scene.prepare = prepare
    await scene.hosting.start()
    assert [(one.num_starts, one.num_stops) for one in scene.engines] == [(1, 1), (0, 0), (1, 0)]
    with pytest.raises(ModelUnavailableError, match="its engine cannot start: no memory left"):
        scene.engine("heads")
    assert scene.engine("lm").num_starts == 1, "others are served"
    scene.prepare = lambda engine: None
    await scene.hosting.load("heads", 1)
    assert scene.engine("heads", 1, "other").num_starts == 1
    await scene.hosting.stop()
    assert scene.stops() == [1, 0, 1, 1, 1]


async def test_a_load_continues_when_its_caller_leaves(scene: Scene) -> None:
    gate = threading.Event()
    scene.prepare = lambda engine: setattr(engine, "gate", gate)
    load = asyncio.create_task(scene.hosting.load("lm", 1))
    await scene.made.wait()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    again, num_tasks = asyncio.create_task(scene.hosting.load("lm", 1)), len(asyncio.all_tasks())
    await until(lambda: len(asyncio.all_tasks()) > num_tasks)  # it has read the folder and wants to load
    gate.set()
    assert [type(one) for one in await again] == [Bundle]
    assert len(scene.engines) == 1, "the second caller gets what the first began"
    await scene.hosting.stop()
    assert scene.stops() == [1]


async def test_a_stop_during_a_load_waits_for_it_and_stops_its_engine(scene: Scene) -> None:
    gate = threading.Event()
    scene.prepare = lambda engine: setattr(engine, "gate", gate)
    start = asyncio.create_task(scene.hosting.start())
    await scene.made.wait()
    start.cancel()
    stop = asyncio.create_task(scene.hosting.stop())
    await turns(10)
    assert not stop.done()
    gate.set()
    await stop
    assert scene.stops() == [1]


async def test_loads_unloads_and_reaps_at_once_stop_each_engine_once(scene: Scene) -> None:
    await scene.hosting.start()

    async def unload() -> None:
        with suppress(ModelNotFoundError):
            await scene.hosting.unload("lm", 1)

    for _ in range(20):
        await asyncio.gather(
            scene.hosting.load("lm", 1), unload(), scene.hosting.reap(), unload(), scene.hosting.look()
        )
    await scene.hosting.stop()
    assert set(scene.stops()) == {1}
    assert {engine.num_starts for engine in scene.engines} == {1}


async def test_an_unloaded_version_stays_unloaded_until_its_bundle_changes(scene: Scene) -> None:
    await scene.hosting.start()
    await scene.hosting.unload("lm", 1)
    await scene.hosting.look()
    with pytest.raises(ModelNotFoundError):
        scene.engine()
    os.rename(scene.folder / "lm", scene.folder / ".lm")
    await scene.hosting.look()
    os.rename(scene.folder / ".lm", scene.folder / "lm")
    await scene.hosting.look()
    with pytest.raises(ModelNotFoundError):
        scene.engine()
    shutil.rmtree(scene.folder / "lm")
    write_language_model(scene.folder, model="lm", seed=5)
    await scene.hosting.look()
    assert scene.engine() is scene.engines[1]
    await scene.hosting.unload("lm", 1)
    await scene.hosting.load()
    assert scene.engine() is scene.engines[2], "who asks for it gets it"


async def test_a_version_added_at_run_time_is_tried_once(scene: Scene) -> None:
    await scene.hosting.start()
    assert scene.tried == [], "what it starts with was checked before"
    await scene.hosting.unload("lm", 1)
    await scene.hosting.load("lm", 1)
    assert scene.tried == [], "it was served already"
    write_language_model(scene.folder, model="lm", version=2, seed=2)
    await scene.hosting.look()
    await scene.hosting.load()
    write_language_model(scene.folder, model="lm", version=3, seed=3)
    await scene.hosting.load("lm", 3)
    assert scene.tried == [("lm", 2), ("lm", 3)]


async def test_an_unload_during_a_scan_is_not_undone_by_it(scene: Scene) -> None:
    await scene.hosting.start()
    write_language_model(scene.folder, model="before", seed=2)  # the scan tries it first
    scene.gate = threading.Event()
    scan = asyncio.create_task(scene.hosting.look())
    await until(lambda: scene.tried)
    await scene.hosting.unload("lm", 1)
    scene.gate.set()
    await scan
    with pytest.raises(ModelNotFoundError):
        scene.engine()


async def test_a_version_whose_manifest_was_replaced_during_its_load_stays_unloaded(scene: Scene) -> None:
    await scene.hosting.start()
    folder = write_language_model(scene.folder, model="lm", version=2, seed=2)
    scene.gate = threading.Event()
    load = asyncio.create_task(scene.hosting.load("lm", 2))
    await until(lambda: scene.tried)
    replace_manifest(folder)
    scene.gate.set()
    await load
    await scene.hosting.unload("lm", 2)
    await scene.hosting.look()
    with pytest.raises(ModelNotFoundError):
        scene.engine("lm", 2)


async def test_a_version_that_fails_its_trial_is_refused_and_tried_once(scene: Scene) -> None:
    await scene.hosting.start()
    folder = write_language_model(scene.folder, model="lm", version=2, seed=2)
    scene.problem = Problem("lm", 2, "its graphs take too much")
    assert await scene.hosting.load("lm", 2) == [scene.problem]
    with pytest.raises(ModelUnavailableError, match="could not be loaded: its graphs take too much"):
        scene.engine("lm", 2)
    await scene.hosting.look()
    assert scene.tried == [("lm", 2)]
    assert len(scene.engines) == 1, "its graphs are not loaded here"
    scene.problem = None
    replace_manifest(folder)
    await scene.hosting.look()
    assert scene.engine("lm", 2) is scene.engines[1]


CHANGES: dict[str, Callable[[Path], object]] = {
    "a graph": lambda folder: (folder / "step.onnx").write_bytes(b"another graph"),
    "a new file": lambda folder: (folder / "card.md").write_bytes(b""),
    "a removed file": lambda folder: (folder / "target.txt").unlink(),
    "who may read a file": lambda folder: (folder / "target.txt").chmod(0o640),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_version_that_failed_is_tried_again_when_its_files_change(
    scene: Scene, change: Callable[[Path], object]
) -> None:
    """Its manifest stays as it is."""
    await scene.hosting.start()
    folder = write_language_model(scene.folder, model="lm", version=2, seed=2)
    (folder / "step.onnx").write_bytes(b"not the graph of the manifest")
    for _ in range(3):
        await scene.hosting.look()
    assert scene.tried == [("lm", 2)]
    change(folder)
    await scene.hosting.look()
    await scene.hosting.look()
    assert scene.tried == 2 * [("lm", 2)]


async def test_a_version_that_failed_is_tried_again_when_an_operator_asks(scene: Scene) -> None:
    await scene.hosting.start()
    write_language_model(scene.folder, model="lm", version=2, seed=2)
    await scene.hosting.unload("lm", 1)
    scene.problem = Problem("lm", 2, "memory ran out")
    await scene.hosting.look()
    await scene.hosting.load("lm", 2)
    assert len(scene.tried) == 2
    scene.problem = None
    await scene.hosting.look(is_asked=True)
    assert scene.engine("lm", 2) is scene.engines[1]
    assert list(scene.hosting.repository.bundles) == [("lm", 2)], "lm/1 stays unloaded"


async def test_an_empty_folder_is_reported_with_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scene = Scene(Path())
    await scene.hosting.start()
    assert scene.observer.heard == [("nothing_served", str(tmp_path), 0)]
    await scene.hosting.look()
    assert scene.observer.count("nothing_served") == 1
    write_language_model(tmp_path)
    scene = Scene(Path())
    await scene.hosting.start()
    assert scene.observer.count("nothing_served") == 0


async def test_a_folder_without_a_servable_version_is_reported(tmp_path: Path) -> None:
    (tmp_path / "lm" / "1").mkdir(parents=True)
    scene = Scene(tmp_path)
    await scene.hosting.start()
    assert scene.observer.heard[-1] == ("nothing_served", str(tmp_path), 1)


async def test_a_missing_folder_is_reported_once_and_served_models_stay(scene: Scene) -> None:
    await scene.hosting.start()
    away = scene.folder.with_name("away")
    os.rename(scene.folder, away)
    for _ in range(3):
        await scene.hosting.look()
    assert scene.observer.count("repository_lost") == 1
    assert scene.engine() is scene.engines[0]
    with pytest.raises(ModelUnavailableError, match="the folder of models cannot be read now: No such file") as raised:
        await scene.hosting.load()
    assert not raised.value.facts
    write_language_model(away, model="late")
    os.rename(away, scene.folder)
    await scene.hosting.look()
    assert scene.observer.count("repository_found") == 1
    assert scene.engine("late") is scene.engines[1]


@pytest.mark.parametrize("name", ["9" * 200, "01", "\N{ARABIC-INDIC DIGIT ONE}", "1.5"])
async def test_folders_that_are_not_versions_are_ignored(scene: Scene, name: str) -> None:
    (scene.folder / "lm" / name).mkdir()
    await scene.hosting.start()
    assert list(scene.hosting.repository.bundles) == [("lm", 1)]
    assert not scene.hosting.repository.problems


async def test_a_missing_folder_or_model_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="none is not a folder"):
        await Scene(tmp_path / "none").hosting.start()
    runtimes = Runtimes(by_model={"gone": RuntimeOptions()})
    with pytest.raises(RepositoryError, match="model_runtimes: 'gone' is not in"):
        await Scene(tmp_path, runtimes).hosting.start()


async def test_messages_about_a_model_are_short_for_any_name(scene: Scene) -> None:
    await scene.hosting.start()
    for asked in (("m" * 4_000_000, 0, ""), ("lm", 1, "v" * 4_000_000)):
        with pytest.raises(ModelNotFoundError) as refusal:
            scene.hosting.find(*asked)
        assert len(refusal.value.message) < 400
    with pytest.raises(ModelNotFoundError) as refusal:
        await scene.hosting.load("m" * 4_000_000)
    assert len(refusal.value.message) < 400


async def test_nothing_of_a_dropped_version_stays_in_memory(scene: Scene) -> None:
    await scene.hosting.start()
    bundle = weakref.ref(scene.hosting.find("lm", 1, "").bundle.target_vocabulary)
    await scene.hosting.unload("lm", 1)
    scene.engines.clear()
    scene.uses.clear()
    gc.collect()
    assert bundle() is None


async def test_an_error_after_the_caller_left_reaches_the_event_loop(scene: Scene) -> None:
    await scene.hosting.start()
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))
    gate, stops = threading.Event(), threading.Event()

    def stop() -> None:
        stops.set()
        gate.wait(10)
        raise RuntimeError("it does not stop")

    scene.engine().stop = stop  # type: ignore[method-assign]
    unload = asyncio.create_task(scene.hosting.unload("lm", 1))
    await asyncio.to_thread(stops.wait, 10)
    unload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unload
    gate.set()
    await scene.hosting.stop()
    assert [str(one["exception"]) for one in heard] == ["it does not stop"]

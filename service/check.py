"""The setting `check`: checks everything that a start needs, without starting. A running server uses the same trial for
new versions."""

from __future__ import annotations

import os
from collections.abc import Callable

from service.certificates import dates_to_warn_of
from service.conditions import conditions, in_use
from service.process import StartError
from service.repository.repository import Problem, RepositoryError, look_at
from service.sessions.stores.open_store import lost_key
from service.settings import Settings
from service.storing import ADVICE, KEY_ADVICE, open_key_mode
from service.trial import TrialLimits, try_version
from service.variables import unknown_variables


def check(settings: Settings) -> int:
    """Prints one line for each condition of a start and for each version: `ok` or `FAILED`; `WARNING` for a problem of
    which a start would warn; `IN USE` for a resource that another process has now.

    Returns the exit code: 0 when the server would start and serve every version in the folder, else 1.
    """
    is_good = True
    for variable, nearest in unknown_variables(os.environ):
        print(f"WARNING {variable} is not a setting{f': did you mean {nearest}?' if nearest else ''}")
    for subject, look in conditions(settings):
        try:
            look(settings)
        except StartError as error:
            print(f"FAILED  {error}")
            is_good = False
        else:
            if subject:
                print(f"ok      {subject}")
    warned = dates_to_warn_of(settings)
    if warned is not None:
        print(f"WARNING {settings.tls_cert_file}: {warned.event}: {warned.at}")
    if mode := open_key_mode(settings):
        print(f"WARNING {settings.storage_key_file} has mode {mode}: {ADVICE}")
    if lost := lost_key(settings.store, settings.snapshot_key_file, settings.data_folder):
        print(f"WARNING {lost} is missing: {KEY_ADVICE}")
    for taken in in_use(settings):
        print(f"IN USE  {taken}")
    try:
        there = look_at(settings.model_folder, settings.runtimes)
    except RepositoryError:
        return 1  # reported above, as a condition
    served = [_try(settings, key) for key in there]
    if not any(served):
        print(f"WARNING {settings.model_folder.resolve()}: no version would be served{_advice(settings)}")
    return 0 if is_good and all(served) else 1


def _advice(settings: Settings) -> str:
    """Returns advice for a folder without versions, if it looks like the folder of one model; else ""."""
    folder = settings.model_folder.resolve()
    if not any(folder.glob("*/manifest.json")):
        return ""
    return f": this looks like the folder of one model: use the folder above it, --models {folder.parent}"


def attempt(settings: Settings, key: tuple[str, int], is_wanted: Callable[[], bool] = lambda: True) -> Problem | None:
    """Runs a version's graphs in their own process: see `try_version`."""
    limits = TrialLimits(settings.check_memory_mib, settings.check_time_s)
    runtime = settings.runtimes.of(key[0])
    return try_version(settings.model_folder, key, runtime, settings.engine_limits, limits, is_wanted=is_wanted)


def _try(settings: Settings, key: tuple[str, int]) -> bool:
    """Prints whether a version would be served, and returns it."""
    model, version = key
    problem = attempt(settings, key)
    print(f"ok      {model}/{version}" if problem is None else f"FAILED  {model}/{version}: {problem.reason}")
    return problem is None

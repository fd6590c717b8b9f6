"""The setting `check`: looks at what the server would be started with, and starts nothing."""

from __future__ import annotations

import os

from service.conditions import conditions, in_use
from service.process import StartError
from service.repository.repository import Repository, RepositoryError, scan
from service.settings import Settings, unknown_variables


def check(settings: Settings) -> int:
    """Prints a line for everything that a start needs, and for every version: `ok`, `FAILED`, `WARNING` for what a
    start would warn of, and `IN USE` for what another process has now.

    Returns the exit code: 0 when the server would start and serve every version that there is, else 1.
    """
    is_good = True
    for variable, nearest in unknown_variables(os.environ):
        print(f"WARNING {variable} is no setting{f': there is {nearest}' if nearest else ''}")
    for subject, look in conditions(settings):
        try:
            look(settings)
        except StartError as error:
            print(f"FAILED  {error}")
            is_good = False
        else:
            if subject:
                print(f"ok      {subject}")
    for taken in in_use(settings):
        print(f"IN USE  {taken}")
    try:
        repository = scan(settings.model_folder, settings.runtimes)
    except RepositoryError:
        return 1  # which was told above
    _tell_versions(repository)
    return 0 if is_good and not repository.problems else 1


def _tell_versions(repository: Repository) -> None:
    for model, version in sorted(repository.bundles):
        print(f"ok      {model}/{version}")
    for (model, version), problem in sorted(repository.problems.items()):
        print(f"FAILED  {model}/{version}: {problem.reason}")
    if not repository.bundles:
        print(f"WARNING {repository.folder.resolve()}: no version would be served")

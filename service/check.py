"""The setting `check`: looks at what the server would be started with, and starts nothing."""

from __future__ import annotations

import sys

from service.certificates import certificates_of
from service.listeners import principals
from service.process import StartError
from service.repository.repository import RepositoryError, scan
from service.settings import Settings


def check(settings: Settings) -> int:
    """Prints what the certificates, the file of principals and each bundle are worth; 1 when one is no good, or there
    is no bundle."""
    are_files_good = _check_files(settings)
    try:
        repository = scan(settings.model_folder, settings.runtimes)
    except RepositoryError as error:
        print(error, file=sys.stderr)
        return 1
    for model, version in sorted(repository.bundles):
        print(f"ok      {model}/{version}")
    for (model, version), problem in sorted(repository.problems.items()):
        print(f"FAILED  {model}/{version}: {problem.reason}")
    if not repository.bundles and not repository.problems:
        print(f"no bundle in {settings.model_folder}", file=sys.stderr)
    return 0 if repository.bundles and not repository.problems and are_files_good else 1


def _check_files(settings: Settings) -> bool:
    """Prints what the certificates and the file of principals are worth. Returns whether all are good."""
    is_good = True
    for file, read in ((settings.tls_cert_file, certificates_of), (settings.tokens_file, principals)):
        if file is None:
            continue
        try:
            read(settings)
            print(f"ok      {file}")
        except StartError as error:
            print(f"FAILED  {error}")
            is_good = False
    return is_good

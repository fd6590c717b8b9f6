"""What `python -m service` does besides serving: `health`, `token NAME`, `--version`, and the setting `check`.

Each command gets the arguments after its name, and returns the process's exit code: 2 when it was called wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from carousel._version import __version__
from service.api.principals import new_token
from service.listeners import StartError, certificates_of, principals
from service.probe import probe
from service.repository.repository import RepositoryError, scan
from service.settings import Settings

_HELP = ("-h", "--help")
_USAGE = {
    "health": """usage: python -m service health [SETTINGS]

Asks a server on this machine whether it serves, prints the answer, and exits with 0 if it does. The settings say where
it listens, as those of the server do: --host, --port and --health-port, or their variables. A server with TLS needs
--health-port.""",
    "token": """usage: python -m service token NAME

Makes a token for the principal NAME: prints the token to standard error, once, and to standard output what belongs into
the file of --tokens-file.""",
    "--version": "usage: python -m service --version",
}


def refused(command: str) -> int:
    """Says which commands there are."""
    print(
        f"there is no command {command!r}: there are health, token NAME and --version; without one it serves, and"
        " settings begin with --: see python -m service --help",
        file=sys.stderr,
    )
    return 2


def read_settings(arguments: list[str]) -> Settings | None:
    """The settings of flags and variables; None when they were refused, and what for was printed. `--help` exits."""
    try:
        return CliApp.run(Settings, cli_args=arguments)
    except (ValidationError, SettingsError) as error:
        print(_told(error), file=sys.stderr)
        return None


def health(arguments: list[str]) -> int:
    """Asks a server that runs."""
    if any(one in _HELP for one in arguments):
        print(_USAGE["health"])
        return 0
    settings = read_settings(arguments)
    return 2 if settings is None else probe(settings)


def make_token(arguments: list[str]) -> int:
    """Prints a new token, and what the file of tokens has of it."""
    if any(one in _HELP for one in arguments):
        print(_USAGE["token"])
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(_USAGE["token"].partition("\n")[0], file=sys.stderr)
        return 2
    token, digest = new_token()
    print(f"token (shown once): {token}", file=sys.stderr)
    print(f'[principals.{arguments[0]}]\ntoken_sha256 = ["{digest}"]')
    return 0


def tell_version(arguments: list[str]) -> int:
    """Prints the version."""
    if arguments:
        print(f"{_USAGE['--version']}: it takes no {arguments[0]!r}", file=sys.stderr)
        return 2
    print(f"Carousel {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "health": health,
    "token": make_token,
    "--version": tell_version,
}


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


def _told(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error)
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if not name:  # settings that do not go together, which the message names: its input is all of them
            lines.append(str(problem.get("ctx", {}).get("error", problem["msg"])))
            continue
        lines.append(f"{name} = {problem.get('input')!r}: {problem['msg']}")
    return "\n".join(lines)

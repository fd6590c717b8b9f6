"""The commands of `python -m service` that do not serve: `health`, `token NAME` and `--version`.

Each command receives the arguments after its name and returns the exit code: 2 for wrong arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from carousel._version import __version__
from service.redaction import without_passwords
from service.settings import SECRETS, Settings

_HELP = ("-h", "--help")
_USAGE = {
    "health": """usage: python -m service health [SETTINGS]

Asks a server on this machine whether it serves, prints the answer, and exits with 0 if the server serves. Give the same
--host, --port and --health-port as the server has, or the same environment variables. A server with TLS needs
--health-port.""",
    "token": """usage: python -m service token NAME

Makes a token for the principal NAME. Prints the token to standard error, only this once, and the entry for the file of
--tokens-file to standard output.""",
    "--version": "usage: python -m service --version",
}


def refused(command: str) -> int:
    """Prints which commands exist, and returns the exit code 2."""
    print(
        f"unknown command {command!r}: expected health, token NAME or --version; without a command the server starts."
        " Settings begin with --: see python -m service --help",
        file=sys.stderr,
    )
    return 2


def read_settings(arguments: list[str]) -> Settings | None:
    """Returns the settings from flags and variables. If they are invalid, prints why and returns None. `--help`
    exits."""
    try:
        return CliApp.run(Settings, cli_args=arguments)
    except (ValidationError, SettingsError) as error:
        print(_message(error), file=sys.stderr)
        return None


def health(arguments: list[str]) -> int:
    """Asks a running server whether it serves."""
    if any(one in _HELP for one in arguments):
        print(_USAGE["health"])
        return 0
    settings = read_settings(arguments)
    if settings is None:
        return 2
    from service.probe import probe  # noqa: PLC0415  # it imports gRPC, which Envoy's launcher does not need

    return probe(settings)


def make_token(arguments: list[str]) -> int:
    """Prints a new token, and the entry for it in the file of tokens."""
    if any(one in _HELP for one in arguments):
        print(_USAGE["token"])
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(_USAGE["token"].partition("\n")[0], file=sys.stderr)
        return 2
    from service.api.principals import new_token  # noqa: PLC0415  # it imports the API: as above

    token, digest = new_token()
    print(f"token (shown once): {token}", file=sys.stderr)
    print(f'[principals.{arguments[0]}]\ntoken_sha256 = ["{digest}"]')
    return 0


def tell_version(arguments: list[str]) -> int:
    """Prints the version."""
    if arguments:
        print(f"{_USAGE['--version']}: unexpected argument {arguments[0]!r}", file=sys.stderr)
        return 2
    print(f"Carousel {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "health": health,
    "token": make_token,
    "--version": tell_version,
}


def _message(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return without_passwords(str(error).removeprefix("error parsing CLI: "))
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        text = str(problem.get("ctx", {}).get("error", problem["msg"]))
        # An error about several settings has no name: its message names them, and its input is all settings.
        value = "" if name in SECRETS else f" = {problem.get('input')!r}"
        lines.append(f"{name}{value}: {text}" if name else text)
    return without_passwords("\n".join(lines))

"""`python -m service`: reads the settings, then checks or serves. `python -m service health`: asks one that runs.

`python -m service token NAME`: makes a token for a principal. `python -m service --version`: prints the version.
"""

from __future__ import annotations

import asyncio
import os
import sys

import structlog
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from carousel._version import __version__
from service import process
from service.api.principals import new_token
from service.listeners import StartError
from service.probe import probe
from service.repository.repository import RepositoryError, scan
from service.server import Server
from service.settings import Settings, unknown_variables
from service.telemetry import logging


def main() -> int:
    """The process's exit code: 0 after a clean stop, 1 when it could not start or a check failed, 2: settings."""
    command, *arguments = sys.argv[1:] or [""]
    if command in ("token", "--version"):
        return make_token(arguments) if command == "token" else tell_version()
    try:
        settings = CliApp.run(Settings, cli_args=arguments if command == "health" else sys.argv[1:])
    except (ValidationError, SettingsError) as error:
        print(_told(error), file=sys.stderr)
        return 2
    if command == "health":
        return probe(settings)
    if settings.check:
        return check(settings)
    logging.configure(settings.log_format, settings.log_level)
    for variable, nearest in unknown_variables(os.environ):
        structlog.get_logger().warning("settings.unknown_variable", variable=variable, nearest=nearest)
    try:
        process.run(serve(settings))
    except StartError as error:
        structlog.get_logger().error("server.cannot_start", reason=str(error))
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Serves until a signal comes. Raises StartError, and whatever crashed an engine."""
    asyncio.get_running_loop().set_exception_handler(logging.loop_exception)
    await Server(settings).run()


def tell_version() -> int:
    """Prints the version."""
    print(f"Carousel {__version__}")
    return 0


def make_token(arguments: list[str]) -> int:
    """Prints a new token, and what the file of tokens has of it."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m service token NAME", file=sys.stderr)
        return 2
    token, digest = new_token()
    print(f"token (shown once): {token}", file=sys.stderr)
    print(f'[principals.{arguments[0]}]\ntoken_sha256 = ["{digest}"]')
    return 0


def check(settings: Settings) -> int:
    """Prints what each bundle is worth; 1 when one cannot be served, or there is none."""
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
    return 0 if repository.bundles and not repository.problems else 1


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


if __name__ == "__main__":
    sys.exit(main())

"""`python -m distributions.locking --compiler PROGRAM` locks the image's packages, with versions and hashes.

Writes into `deploy/locks`: `server.lock`; for each extra that an image may have, a lock of the additional packages; and
`build.lock`, the packages that build the wheels. `./scripts/lock` runs it with the image's Python version.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distributions.metadata import backend
from distributions.staging import Checkout

FOLDER = Path("deploy", "locks")
_OPTIONS = ("--generate-hashes", "--strip-extras", "--no-header", "--no-annotate", "--allow-unsafe", "--quiet")
_OF_THIS_MACHINE = ("--no-emit-find-links", "--no-emit-index-url", "--no-emit-trusted-host")
_HEAD = "# Made by ./scripts/lock: do not edit.\n"


class LockError(Exception):
    """No lock can be made; the message is the compiler's, or names a conflict."""


def entries(lock: str) -> dict[str, str]:
    """Returns the packages of a lock, each with its lines: the version and the hashes."""
    found: dict[str, str] = {}  # a backslash at the end of a line continues the entry
    for entry in re.findall(r"^[\w.-]+==[^\\\n]*(?:\\\n[^\\\n]*)*\n", lock, re.MULTILINE):
        found[entry.partition("==")[0]] = entry
    return found


def beyond(lock: str, base: str) -> str:
    """Returns the entries of a lock that `base` does not have. Raises LockError when a package of both has different
    entries."""
    ours, theirs = entries(lock), entries(base)
    for name in sorted(ours.keys() & theirs):
        if ours[name] != theirs[name]:
            raise LockError(f"{name} has different entries: {ours[name].split()[0]} and {theirs[name].split()[0]}")
    return _HEAD + "".join(entry for name, entry in ours.items() if name not in theirs)


def requirements(checkout: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the requirements of each lock, by its name. checkout: the parsed pyproject.toml."""
    project, image = checkout["project"], checkout["tool"]["carousel"]["image"]
    found = {"server": [*project["dependencies"], *image["also"]], "build": [backend(checkout)]}
    return found | {extra: list(project["optional-dependencies"][extra]) for extra in image["extras"]}


def compiled(compiler: str, wanted: Sequence[str], base: str = "") -> str:
    """Returns a lock of `wanted` and its dependencies; packages in the lock `base` keep their versions. Raises
    LockError."""
    with tempfile.TemporaryDirectory() as folder:
        source, lock = Path(folder, "requirements.in"), Path(folder, "requirements.txt")
        source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        lock.write_text(base, encoding="utf-8")
        command = [compiler, *_OPTIONS, *_OF_THIS_MACHINE, "--output-file", str(lock), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LockError(f"{compiler} found no versions:\n{done.stderr}")
        return _HEAD + lock.read_text(encoding="utf-8")


def write_locks(root: Path, compiler: str) -> list[Path]:
    """Writes all locks. Returns their paths. Raises LockError."""
    wanted = requirements(Checkout.at(root).project)
    locks = {"server": compiled(compiler, wanted.pop("server")), "build": compiled(compiler, wanted.pop("build"))}
    for extra, needs in wanted.items():
        both = compiled(compiler, [*requirements(Checkout.at(root).project)["server"], *needs], locks["server"])
        locks[extra] = beyond(both, locks["server"])
    (root / FOLDER).mkdir(exist_ok=True)
    for name, text in locks.items():
        (root / FOLDER / f"{name}.lock").write_text(text, encoding="utf-8")
    return [root / FOLDER / f"{name}.lock" for name in locks]


def main() -> int:
    """Runs the command line. Returns the process's exit code: 0 when all locks were written."""
    parser = argparse.ArgumentParser(description="Locks what the image installs.")
    parser.add_argument(
        "--compiler", required=True, metavar="PROGRAM", help="pip-compile, installed in the image's version of Python"
    )
    try:
        for path in write_locks(Path(__file__).parents[1], parser.parse_args().compiler):
            print(path)
    except LockError as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

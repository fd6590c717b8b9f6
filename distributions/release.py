"""`python -m distributions.release VERSION` writes a release's version, and its section of the changelog.

`./scripts/release` does the rest: checks, tests, commit, distributions, image and tag.
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from distributions.staging import VERSION_FILE, Checkout

CHANGELOG = Path("CHANGELOG.md")
DEPLOYED = (Path("deploy/kustomization.yaml"), Path("deploy/helm/carousel/Chart.yaml"))
"""Files that contain the image's version."""
_UNRELEASED = "## [Unreleased]\n"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class ReleaseError(Exception):
    """This release is impossible; the message says why, and what to do."""


def next_changelog(changelog: str, version: str, day: date) -> str:
    """Returns the changelog with the unreleased changes below the version's heading. Raises ReleaseError."""
    if f"## [{version}]" in changelog:
        raise ReleaseError(f"{CHANGELOG} already has a section for {version}: choose a later version")
    before, found, after = changelog.partition(_UNRELEASED)
    if not found:
        raise ReleaseError(
            f"{CHANGELOG} has no line {_UNRELEASED.strip()!r}: add this line, and write what has changed below it"
        )
    if not after.partition("\n## ")[0].strip():
        raise ReleaseError(f"{CHANGELOG} has nothing below {_UNRELEASED.strip()!r}: write what has changed there")
    return f"{before}{_UNRELEASED}\n## [{version}] - {day.isoformat()}\n{after}"


def next_version(source: str, current: str, version: str) -> str:
    """Returns the version file's text for a release. Raises ReleaseError for an invalid version, or one below the
    current."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"{version!r:.60} is not a version: give three numbers, such as 1.2.3")
    if _numbers(version) < _numbers(current):
        raise ReleaseError(
            f"{version} is earlier than the current version {current}: give {current} or a later version"
        )
    return source.replace(f'"{current}"', f'"{version}"')


def next_deployed(text: str, current: str, version: str) -> str:
    """Returns the text of a deployed file with the new version. Raises ReleaseError when it does not have the current
    one."""
    found = re.compile(rf"(?m)^( *(?:newTag|version|appVersion): ){re.escape(current)}$")
    text, num_found = found.subn(rf"\g<1>{version}", text)
    if not num_found:
        raise ReleaseError(f"the deployed files have no version {current}: check {' and '.join(map(str, DEPLOYED))}")
    return text


def release(root: Path, version: str, day: date) -> None:
    """Writes all files of the checkout at `root`, or none. Raises ReleaseError."""
    files = [root / path for path in (VERSION_FILE, CHANGELOG, *DEPLOYED)]
    source, changelog, *deployed = (path.read_text(encoding="utf-8") for path in files)
    current = Checkout.at(root).version
    texts = [next_version(source, current, version), next_changelog(changelog, version, day)]
    texts += [next_deployed(text, current, version) for text in deployed]
    for path, text in zip(files, texts, strict=True):
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Runs the command line. Returns the process's exit code: 0 when all files were written."""
    parser = argparse.ArgumentParser(description="Writes a release's version, and its section of the changelog.")
    parser.add_argument("version", metavar="VERSION", help="three numbers, such as 1.2.3")
    try:
        release(Path(__file__).parents[1], parser.parse_args().version, datetime.now(UTC).date())
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    sys.exit(main())

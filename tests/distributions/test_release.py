"""A release completes, or it leaves everything unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from carousel._version import __version__
from distributions.release import DEPLOYED, ReleaseError, next_changelog, next_deployed, next_version
from tests.conftest import ROOT

DAY = date(2027, 1, 2)
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- All of it.\n\n## [0.1.0] - 2026-12-01\n\n- Less.\n"


def test_a_release_moves_unreleased_changes_below_a_new_heading() -> None:
    expected = CHANGELOG.replace("## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n")
    assert next_changelog(CHANGELOG, "0.2.0", DAY) == expected


@pytest.mark.parametrize(
    ("changelog", "version", "message"),
    [
        (CHANGELOG, "0.1.0", "already has a section for 0.1.0: choose a later"),
        (CHANGELOG.replace("### Added\n\n- All of it.\n", ""), "0.2.0", "has nothing below '## .Unreleased.'"),
        ("# Changelog\n", "0.2.0", "has no line '## .Unreleased.'"),
    ],
)
def test_a_release_that_says_nothing_new_is_refused(changelog: str, version: str, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        next_changelog(changelog, version, DAY)


@pytest.mark.parametrize("version", ["0.9.10", "0.10.0", "1.0.0"])
def test_the_code_gets_the_version(version: str) -> None:
    assert next_version('__version__ = "0.9.10"\n', "0.9.10", version) == f'__version__ = "{version}"\n'


@pytest.mark.parametrize(
    ("version", "message"),
    [("1.2", "'1.2' is not a version"), ("v1.2.3", "is not a version"), ("0.9.9", "is earlier than")],
)
def test_a_version_that_is_not_later_is_refused(version: str, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        next_version('__version__ = "0.9.10"\n', "0.9.10", version)


@pytest.mark.parametrize("path", DEPLOYED, ids=str)
def test_what_is_deployed_gets_the_version_and_nothing_else_is_changed(path: Path) -> None:
    text = (ROOT / path).read_text()
    changed = next_deployed(text, __version__, "9.8.7")
    assert changed != text
    assert changed.replace("9.8.7", __version__) == text
    assert next_deployed(changed, "9.8.7", __version__) == text


def test_what_is_deployed_with_another_version_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"have no version 0\.1\.0"):
        next_deployed("newTag: 0.1.01\n", "0.1.0", "0.2.0")


class Project:
    """A repository with the release script, and fake programs that only record their calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls_file = root, root.parent / "calls"
        for name in ("scripts/release", "pyproject.toml", "carousel/_version.py", *DEPLOYED):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        (root / "carousel" / "_version.py").write_text('__version__ = "0.1.0"\n')
        for path in DEPLOYED:
            (root / path).write_text((ROOT / path).read_text().replace(__version__, "0.1.0"))
        shutil.copytree(ROOT / "distributions", root / "distributions", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "CHANGELOG.md").write_text(CHANGELOG)
        (root / ".gitignore").write_text(".venv/\n__pycache__/\n")
        for name in ("setup", "check", "test", "build"):
            self.fake(root / "scripts" / name)
        self.fake(root.parent / "bin" / "docker")
        (root / ".venv" / "bin").mkdir(parents=True)
        (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "All of it")

    def fake(self, path: Path, code: int = 0) -> None:
        """Writes a program that records its name and arguments and ends with this exit code."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >> "{self.calls_file}"\nexit {code}\n')
        path.chmod(0o755)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@localhost")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def release(self, version: str) -> subprocess.CompletedProcess[str]:
        variables = {
            f"GIT_{who}_{what}": "a@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        path = f"{self.root.parent / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["./scripts/release", version],
            cwd=self.root,
            env={**os.environ, **variables, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_a_release_is_checked_tested_committed_built_and_tagged(project: Project) -> None:
    done = project.release("0.2.0")
    assert done.returncode == 0, done.stderr
    assert project.git("log", "-1", "--format=%s") == "Release 0.2.0"
    assert project.git("rev-parse", "v0.2.0^{commit}") == project.git("rev-parse", "HEAD")
    assert project.git("status", "--porcelain") == ""
    assert '"0.2.0"' in (project.root / "carousel" / "_version.py").read_text()
    assert "## [0.2.0] - " in (project.root / "CHANGELOG.md").read_text()
    for path in DEPLOYED:
        assert ": 0.2.0\n" in (project.root / path).read_text()
    epoch = project.git("log", "-1", "--format=%ct")
    assert project.calls == [
        "docker info",
        "setup dev,train",
        "check ",
        "test ",
        "test -m installed tests/distributions",
        "build --to dist/0.2.0",
        f"docker build --build-arg SOURCE_DATE_EPOCH={epoch} -f deploy/Dockerfile"
        " -t carousel:0.2.0 -t carousel:latest .",
    ]


@pytest.mark.parametrize("failing", ["check", "test", "build"])
def test_a_step_that_fails_leaves_everything_as_it_was(project: Project, failing: str) -> None:
    project.fake(project.root / "scripts" / failing, code=1)
    project.git("commit", "--quiet", "--all", "--message", "It fails")
    head = project.git("rev-parse", "HEAD")
    done = project.release("0.2.0")
    assert done.returncode == 1
    assert done.stderr.endswith("0.2.0 is not released\n")
    assert (project.git("rev-parse", "HEAD"), project.git("status", "--porcelain"), project.git("tag")) == (
        head,
        "",
        "",
    )


def test_a_failed_release_keeps_concurrent_changes(project: Project) -> None:
    (project.root / "scripts" / "test").write_text("#!/bin/sh\necho mine > pyproject.toml\nexit 1\n")
    project.git("commit", "--quiet", "--all", "--message", "It changes a file, and fails")
    assert project.release("0.2.0").returncode == 1
    assert (project.root / "pyproject.toml").read_text() == "mine\n"
    assert project.git("status", "--porcelain") == "M pyproject.toml"


@pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "latest"])
def test_an_invalid_version_is_refused_before_anything_runs(project: Project, version: str) -> None:
    done = project.release(version)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{version} is not released\n")
    assert project.calls == ["docker info", "setup dev,train"]


def test_changes_that_are_not_committed_are_not_touched(project: Project) -> None:
    (project.root / "CHANGELOG.md").write_text("mine")
    done = project.release("0.2.0")
    assert (done.returncode, project.calls) == (1, [])
    assert "the working tree has changes" in done.stderr
    assert (project.root / "CHANGELOG.md").read_text() == "mine"


def test_an_existing_tag_is_not_moved(project: Project) -> None:
    project.git("tag", "v0.2.0")
    done = project.release("0.2.0")
    assert (done.returncode, project.calls) == (1, [])
    assert "the tag v0.2.0 exists already" in done.stderr

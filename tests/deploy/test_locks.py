"""The image installs what pyproject.toml allows: each package in one version, checked by hashes."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distributions.locking import FOLDER, LockError, beyond, entries, requirements
from tests.conftest import ROOT

WANTED = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text()))
LOCKS = {path.stem: entries(path.read_text()) for path in (ROOT / FOLDER).iterdir()}
ONE = "a==1.0 \\\n    --hash=sha256:00\n"
TWO = 'b==2.0 ; sys_platform != "win32" \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n'


def test_there_is_a_lock_of_each_and_no_other() -> None:
    assert set(LOCKS) == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_every_requirement_is_locked_in_a_version_that_it_allows(name: str) -> None:
    locked = LOCKS["server"] | LOCKS[name]
    versions = {canonicalize_name(one): re.split(r"[= ]+", entry)[1] for one, entry in locked.items()}
    for requirement in map(Requirement, WANTED[name]):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, "run ./scripts/lock"


@pytest.mark.parametrize("name", WANTED)
def test_every_package_has_hashes(name: str) -> None:
    text = (ROOT / FOLDER / f"{name}.lock").read_text()
    for package, entry in LOCKS[name].items():
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}", entry), package
    assert "".join(LOCKS[name].values()) == "".join(text.splitlines(keepends=True)[1:]), "all lines are of a package"


def test_an_extras_lock_has_only_what_the_server_lacks() -> None:
    assert entries(TWO + ONE) == {"a": ONE, "b": TWO}
    assert entries(beyond(ONE + TWO, ONE)) == {"b": TWO}
    assert not any(LOCKS[name].keys() & LOCKS["server"] for name in ("cli", "encryption", "tracing"))


def test_a_package_in_two_versions_is_refused() -> None:
    with pytest.raises(LockError, match=r"a has different entries: a==1\.1 and a==1\.0"):
        beyond(ONE.replace("1.0", "1.1"), ONE)

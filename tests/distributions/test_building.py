"""The same source gives the same bytes: in another folder, at another time, and from the sdist."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from distributions.building import build, build_staged
from tests.conftest import ROOT

EPOCH = "1700000000"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        return {path.name: path.read_bytes() for path in build(ROOT, tmp_path_factory.mktemp("dist"))}


def test_a_wheel_and_an_sdist_of_each_are_built(built: dict[str, bytes]) -> None:
    kinds = [(name.split("-")[0], name.rpartition(".")[2]) for name in built]
    assert kinds == [
        ("carousel_client", "gz"),
        ("carousel_client", "whl"),
        ("carousel_serving", "gz"),
        ("carousel_serving", "whl"),
    ]


def test_the_page_is_in_the_servers_wheel(built: dict[str, bytes]) -> None:
    (wheel,) = [data for name, data in built.items() if name.startswith("carousel_serving") and name.endswith(".whl")]
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for path in (ROOT / "service" / "page").iterdir():
            assert archive.read(f"carousel_server/service/page/{path.name}") == path.read_bytes()


def test_what_the_image_copies_gives_the_same_bytes(
    built: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is in another folder, has other file modes, and is not in Git."""
    copy = tmp_path / "copy"
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    copied = " ".join(lines).split()
    assert {"carousel", "service", "pyproject.toml"} <= set(copied)
    ignore = shutil.ignore_patterns("__pycache__")
    copy.mkdir()
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copyfile(ROOT / name, copy / name)
    for path in copy.rglob("*.py"):
        path.chmod(0o600)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    assert {path.name: path.read_bytes() for path in build(copy, tmp_path / "dist")} == built


@pytest.mark.parametrize("epoch", [None, ""])
def test_an_sdist_builds_the_same_wheel_anywhere(
    built: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: str | None
) -> None:
    """The environment need not set the time, and the clock may differ."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    compared = 0
    for name in [name for name in built if name.endswith(".tar.gz")]:
        (tmp_path / name).write_bytes(built[name])
        with tarfile.open(tmp_path / name) as archive:
            archive.extractall(tmp_path, filter="data")
        (tmp_path / name).unlink()
        source = tmp_path / name.removesuffix(".tar.gz")
        for path in source.rglob("*"):
            os.utime(path)
        for path in build_staged(source, tmp_path):
            assert path.read_bytes() == built[path.name]
            compared += 1
    assert compared == 4

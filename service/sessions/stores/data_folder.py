"""The folder of the embedded store. Only its user may read it, only one process uses it at a time, and that process
notices when its files are removed or replaced."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import structlog

from service.sessions.stores.base import StoreError
from service.sessions.stores.lmdb_file import check_data_file

log = structlog.get_logger()

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ADVICE = "move back the folder that the server has opened, or restart the server"


class DataFolder:
    """A folder that this process holds until `close`.

    path: created if missing. Raises StoreError when the folder cannot be used or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data_file = path / "data.mdb"
        self._lock_file = path / "owner.lock"
        self._least_bytes = 0
        self._opened: os.stat_result | None = None
        make_folder(path)
        with ExitStack() as undo:
            try:
                self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                undo.callback(self.close)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel unlocks it when the process ends
                self._locked = os.fstat(self._lock)
                for file in (self._lock_file, self.data_file, path / "lock.mdb"):
                    tighten(file)
            except BlockingIOError as error:
                raise StoreError(
                    f"the data folder {path} is in use by another process: give this server another one by"
                    " --data-folder, or keep its sessions in memory alone by --store memory"
                ) from error
            except OSError as error:
                raise _unusable(self._lock_file, error) from error
            self.check()
            undo.pop_all()

    def open_environment(
        self, names: Sequence[bytes], initial_bytes: int
    ) -> tuple[lmdb.Environment, list[lmdb._Database]]:
        """Opens or creates the data file. From now on `check` examines it, too. Call it once.

        names: of the databases. initial_bytes: the least size of the map. Returns LMDB's environment and its databases.
        Raises StoreError.
        """
        with ExitStack() as undo:
            try:
                if os.path.lexists(self.data_file):
                    check_data_file(self.data_file)
                else:
                    _make_data_file(self.data_file, names, initial_bytes)
                size = max(initial_bytes, self.data_file.stat().st_size)
                environment = lmdb.open(str(self.path), map_size=size, max_dbs=len(names), mode=0o600)
                undo.callback(environment.close)
                databases = [environment.open_db(name) for name in names]
            except (lmdb.Error, OSError) as error:
                raise StoreError(
                    f"the data folder {self.path} cannot be opened ({error}): let the server's user read and write all"
                    " of its files, or set data_folder to another folder"
                ) from error
            self._opened = _stat(self.data_file)
            self.check()
            undo.pop_all()
        return environment, databases

    def check(self) -> None:
        """Raises StoreError when the lock file or the data file was removed or replaced, or when the data file has
        shrunk; LMDB never shrinks it. Any thread may call it."""
        least_bytes = self._least_bytes  # read before the file's size, which another thread's transaction may increase
        if not os.path.samestat(_stat(self._lock_file), self._locked):
            raise StoreError(f"{self._lock_file} was replaced while the server runs: {_ADVICE}")
        if self._opened is None:
            return
        now = _stat(self.data_file)
        if not os.path.samestat(now, self._opened):
            raise StoreError(f"{self.data_file} was replaced while the server runs: {_ADVICE}")
        if now.st_size < least_bytes:
            raise StoreError(
                f"{self.data_file} was cut from {least_bytes} to {now.st_size} bytes while the server runs: restore it"
                " from a backup, and restart the server"
            )
        self._least_bytes = now.st_size

    def close(self) -> None:
        """Releases the folder for other processes."""
        os.close(self._lock)


def is_in_use(path: Path) -> bool:
    """Whether another process holds a folder. Changes nothing. False when the folder cannot be examined."""
    try:
        lock = os.open(path / "owner.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def check_folder(path: Path) -> None:
    """Checks whether `make_folder` can create a folder, or use the existing one: creates a temporary folder in it and
    removes it. Raises StoreError."""
    there = next((folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder)), path)
    if not there.is_dir():
        raise StoreError(f"{there} is not a folder: move it away, or set data_folder to another folder")
    try:
        os.listdir(there)
        with TemporaryDirectory(prefix=".carousel-", dir=there):  # permissions do not tell on some file systems
            pass
    except OSError as error:
        what = "" if there == path else f" cannot be made: the folder {there}"
        raise StoreError(
            f"{path}{what} is read-only for the server's user ({error.strerror}): let that user read and write it, or"
            " set data_folder to another folder"
        ) from error


def make_folder(path: Path) -> None:
    """Creates a folder that only its user may use, or removes the permissions of other users on an existing one. Raises
    StoreError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        tighten(path)
    except FileExistsError as error:
        raise StoreError(f"{path} is not a folder: move it away, or set data_folder to another folder") from error
    except OSError as error:
        raise _unusable(path, error) from error


def tighten(path: Path) -> None:
    """Removes the permissions of group and others on a file or folder, if it exists. When that fails, logs how an
    operator can do it. A folder with the sticky bit, such as /tmp, stays unchanged, because other users need it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not mode & _OTHERS:
        return
    reason = "it has the sticky bit"
    if not mode & stat.S_ISVTX:
        try:
            path.chmod(mode & ~_OTHERS)
            return
        except OSError as error:
            reason = str(error.strerror)
    log.warning(
        "data_folder.open_to_others",
        path=str(path),
        mode=f"{mode:04o}",
        reason=reason,
        advice="others on this machine may read sessions or the key that signs them: run `chmod go-rwx` on the path as"
        " its owner, or set data_folder to a folder that only the server's user may use",
    )


def put_in_place(new: Path, path: Path) -> None:
    """Renames a written and synced file to `path`, so that `path` is complete or missing, also after a power failure.
    Raises OSError."""
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not every file system can sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)


def _make_data_file(path: Path, names: Sequence[bytes], size: int) -> None:
    """Creates the file atomically: a process that is killed meanwhile leaves no partial file, which the next start
    would refuse. Raises lmdb.Error and OSError."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    environment = lmdb.open(str(new), subdir=False, lock=False, map_size=size, max_dbs=len(names), mode=0o600)
    try:
        for name in names:
            environment.open_db(name)
    finally:
        environment.close()
    put_in_place(new, path)


def _stat(path: Path) -> os.stat_result:
    """Returns the status of a file. Raises StoreError."""
    try:
        return os.stat(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path} was removed while the server runs: {_ADVICE}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be looked at any more ({error.strerror}): {_ADVICE}") from error


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be used ({error.strerror}): let the server's user read and write its folder, or set data_folder"
        " to another folder"
    )

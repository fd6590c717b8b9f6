"""Starts Python programs from a process that has already imported their modules.

A server takes most of a second to import what it needs, a command two thirds of one. Here one process imports the
modules, and each program is a fork of it. A program is otherwise what `python -m MODULE` is: it has its own process,
arguments, environment, folder and files, and it ends with its own exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, Any, NoReturn

from examples.local_service import Process

IMPORTED = (
    "service.commands",
    "service.server",
    "service.wire.grpcio",
    "service.check",
    "service.wire.envoy.launcher",
    "carousel.cli.app",
)
"""What the programs import, without the modules `__main__`, which act when they are imported."""

_MAX_REQUEST_BYTES = 1 << 20
_making = threading.Lock()


class Program:
    """A started program, with the methods of `subprocess.Popen` that tests use. returncode: None until it has ended."""

    def __init__(self, args: Sequence[str], status: IO[bytes]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._status = status
        reported = status.readline()
        if not reported:
            status.close()
            raise RuntimeError("the fork server has ended")
        self.pid = int(reported)

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal, or None if the program runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal to a program that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = int(self._status.readline() or -signal.SIGKILL)
            self._status.close()
        return self.returncode


class ForkServer:
    """The process that has imported the modules."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._socket = ours
        self._lock = threading.Lock()

    def start(
        self, module: str, arguments: Sequence[str], files: Sequence[int], environment: Mapping[str, str]
    ) -> Program:
        """Starts `python -m MODULE ARGUMENTS` in the current folder. Thread-safe.

        files: its standard input, output and error. environment: all its variables.
        """
        request = {"module": module, "arguments": [*arguments], "folder": os.getcwd(), "environment": {**environment}}
        status, reported = os.pipe()
        with self._lock:  # one request at a time: the next is sent when this one has been read
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, reported])
            finally:
                os.close(reported)
            return Program([module, *arguments], os.fdopen(status, "rb", buffering=0))


@cache
def _only_fork_server() -> ForkServer:
    return ForkServer()


def fork_server() -> ForkServer:
    """Returns this process's fork server. It ends with this process. Thread-safe."""
    with _making:
        return _only_fork_server()


def start(command: Sequence[str], stderr: IO[bytes]) -> Process:
    """Starts a command as `subprocess.Popen(command, stderr=stderr)` does. A fork is made if it is Python's `-m`."""
    if list(command[:2]) != [sys.executable, "-m"]:
        return subprocess.Popen(command, stderr=stderr)
    with open(os.devnull, "rb") as nothing:
        return fork_server().start(command[2], command[3:], [nothing.fileno(), 1, stderr.fileno()], os.environ)


def run(module: str, *arguments: str, typed: bytes = b"", timeout: float = 60.0) -> subprocess.CompletedProcess[bytes]:
    """Runs `python -m MODULE ARGUMENTS` to its end. typed: its standard input. timeout: in seconds.

    Raises subprocess.TimeoutExpired after it has killed the program.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        given.write(typed)
        for file in (given, out, errors):
            file.seek(0)
        program = fork_server().start(module, arguments, [file.fileno() for file in (given, out, errors)], os.environ)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess([module, *arguments], code, out.read(), errors.read())


def main(number: int) -> None:
    """Forks a program for each request that arrives on a socket, until its other end is closed."""
    for name in IMPORTED:
        with contextlib.suppress(ModuleNotFoundError):  # a program that needs what is not installed says so
            importlib.import_module(name)
    gc.freeze()  # else each program's garbage collector visits, and so copies, what it shares with this process
    requests = socket.socket(fileno=number)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake)
    reports: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == ended:
                    os.read(ended, 4096)
                    _report(reports)
                    continue
                data, files, *_ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 4)
                if not data:
                    return
                *standard, report = files
                pid = os.fork()
                if not pid:
                    requests.close()
                    for other in (ended, wake, *reports.values()):
                        os.close(other)
                    os.close(report)
                    _run(json.loads(data), standard)
                for file in standard:
                    os.close(file)
                os.write(report, b"%d\n" % pid)
                reports[pid] = report


def _report(reports: dict[int, int]) -> None:
    """Reports the exit codes of the programs that have ended."""
    for pid in [*reports]:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            report = reports.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # no one waits for it
                os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(report)


def _run(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Runs a program in this process, which a fork has made, and ends the process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (_text(number) for number in range(3))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def _text(number: int) -> io.TextIOWrapper:
    """Returns a standard file as Python opens it."""
    if number == 0:
        return io.TextIOWrapper(io.BufferedReader(io.FileIO(number, "rb", closefd=False)), "utf-8")
    errors = "backslashreplace" if number == 2 else "strict"
    buffer = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
    return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=number == 2)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Tests of the server's process: its event loop and how it handles signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from service import process
from tests.services import program


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop has no Windows")
def test_the_event_loop_is_uvloops() -> None:
    assert process.run(module_of_the_loop()).partition(".")[0] == "uvloop"


def test_what_the_server_raises_is_raised() -> None:
    async def fail() -> None:
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        process.run(fail())


_TWO_SIGNALS = """
import asyncio, os, signal
from service import process

async def main():
    process.handle_signals(lambda: os.kill(1, signal.SIGTERM), lambda: None)
    os.kill(1, signal.SIGTERM)
    await asyncio.Event().wait()

process.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces of processes are Linux's")
def test_a_second_signal_ends_the_first_process_of_a_container_too() -> None:
    """The kernel drops a signal to the first process of a container if that process has no handler for it."""
    alone = [program("unshare"), "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes")
    done = subprocess.run([*alone, sys.executable, "-c", _TWO_SIGNALS], capture_output=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


def test_sighup_does_not_end_a_process_that_still_imports() -> None:
    """The hook sends SIGHUP when the entry point starts its first slow import."""
    code = """
import os, runpy, signal, sys

class Hook:
    def find_spec(self, name, *_):
        if name == "structlog":
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, Hook())
sys.argv = ["service", "--version"]
runpy.run_module("service", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Carousel ")

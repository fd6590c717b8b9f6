"""The event loop that the server's process runs on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest

from service import process


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop has no Windows")
def test_it_is_uvloop_s_and_threads_take_turns_often() -> None:
    assert process.run(module_of_the_loop()).partition(".")[0] == "uvloop"
    assert sys.getswitchinterval() == pytest.approx(0.00005)


def test_what_the_server_raises_is_raised() -> None:
    async def fail() -> None:
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        process.run(fail())

"""Python's switch interval is short while an engine's thread drives, and has its default otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.engine import switching
from service.engine.limits import EngineLimits
from service.engine.results import Fed
from tests.engine.calling import running
from tests.waiting import until

SOON, LATE = pytest.approx(0.00005), pytest.approx(0.005)


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    intervals: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", intervals.append)
    for _ in range(switching.num_driving()):  # an engine whose event loop was closed first still counts
        switching.thread_stops()
    intervals.clear()
    return intervals


@pytest.mark.parametrize(("inline_s", "expected"), [(0.0, [SOON, LATE]), (10.0, [])])
async def test_it_is_soon_while_the_thread_drives(
    tiny_repository: Path, intervals: list[float], inline_s: float, expected: list[float]
) -> None:
    async with running(tiny_repository / "tiny-lm" / "1", EngineLimits(num_slots=4, inline_s=inline_s)) as caller:
        assert isinstance(await caller.feed(caller.engine.open(), [5]), Fed)
        await until(lambda: len(intervals) >= len(expected))  # the result may arrive before the thread rests
        assert intervals == expected


def test_it_is_soon_until_no_engine_drives(intervals: list[float]) -> None:
    switching.thread_drives()
    switching.thread_drives()
    switching.thread_stops()
    assert intervals[-1] == SOON
    switching.thread_stops()
    assert intervals[-1] == LATE


def test_a_process_begins_with_late() -> None:
    asked = [sys.executable, "-c", "import sys; print(sys.getswitchinterval())"]
    assert float(subprocess.run(asked, capture_output=True, check=True).stdout) == LATE

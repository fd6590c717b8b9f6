"""An unhandled error is logged in the same form as every other log line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_SCRIPT = """
import asyncio, gc, logging, threading
from service.telemetry import logging as ours

class Spoiled:
    def __del__(self):
        raise ValueError("in a destructor")

async def fail():
    raise ValueError("in a task")

def broken():
    raise ValueError("in a thread")

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(ours.loop_exception)
    task = asyncio.create_task(fail(), name="forgotten")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    gc.collect()
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)

ours.configure("json", "info")
Spoiled()
thread = threading.Thread(target=broken, name="worker")
thread.start()
thread.join()
logging.getLogger("grpc").warning("a library says %s", "so")
logging.getLogger("grpc").warning("a library says %d", "so")
asyncio.run(main())
"""


def test_errors_that_nobody_handles_are_structured_log_lines() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(one["event"], one["level"]) for one in lines] == [
        ("unraisable.exception", "error"),
        ("thread.crashed", "error"),
        ("library.message", "warning"),
        ("library.message", "warning"),
        ("loop.exception", "error"),
        ("loop.exception", "error"),
    ]
    assert "in a destructor" in lines[0]["exception"]
    assert (lines[1]["thread"], "in a thread" in lines[1]["exception"]) == ("worker", True)
    assert (lines[2]["logger"], lines[2]["message"]) == ("grpc", "a library says so")
    assert lines[3]["message"] == "a library says %d", "also one whose arguments do not fit"
    assert lines[4]["message"] == "Task exception was never retrieved"
    assert "forgotten" in lines[4]["source"]
    assert "in a task" in lines[4]["exception"]
    assert "ZeroDivisionError" in lines[5]["exception"]


_FAILS = """
from service.telemetry import logging as ours

ours.configure("text", "info")
private = [0.123456] * 3
try:
    private.index(1.0) if len(private) else None
except ValueError as error:
    ours.log.error("batch.failed", exc_info=error)
"""


def test_a_failure_in_text_has_its_traceback_and_no_values_of_variables() -> None:
    """Values of variables may be private data of callers."""
    done = subprocess.run([sys.executable, "-c", _FAILS], capture_output=True, text=True, check=True, timeout=60)
    assert "Traceback (most recent call last)" in done.stderr
    assert "ValueError: 1.0 is not in list" in done.stderr
    assert "0.123456" not in done.stderr
    assert len(done.stderr.splitlines()) < 10


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_has_the_password_of_a_url(log_format: str) -> None:
    """It does not matter whether one of our fields, a library or an exception contains the URL."""
    script = f"""
import logging, structlog
from service.telemetry import logging as ours

ours.configure({log_format!r}, "info")
structlog.get_logger().info("store.opened", url="redis://:hush@cache:6379")
logging.getLogger("redis").warning("cannot reach redis://:hush@cache:6379")
try:
    raise ValueError("redis://:hush@cache:6379")
except ValueError as error:
    structlog.get_logger().error("store.failed", exc_info=error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.count("redis://***@cache:6379") >= 3
    assert "hush@" not in done.stderr

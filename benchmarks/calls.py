"""Records, with Python's profiler, which functions of a folder are called on the serving threads.

A call is a `call` event of `sys.setprofile`, so each resumption of a coroutine or a generator counts too. The serving
threads are the thread that made the recorder (the event loop's) and each thread that ran a graph (the engines').
Threads that store or export are not on a request's path and do not count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType

import onnxruntime as ort


@dataclass(frozen=True, slots=True)
class Crossed:
    """How much code was executed: calls, distinct functions and distinct files.

    moves: how often the next call on a thread was in another file.
    """

    calls: int
    functions: int
    files: int
    moves: int


class Recorder:
    """Records calls of code in a folder while `is_on` is True. Profiles only the current thread and threads that start
    inside `installed`."""

    def __init__(self, folder: Path) -> None:
        self.is_on = False
        self._prefix = f"{folder.resolve()}/"
        self._run = ort.InferenceSession.run.__code__
        # keyed by id, because code objects that differ only in their file are equal; the value keeps the code object
        # alive, so that its id is not reused
        self._is_ours: dict[int, tuple[bool, CodeType]] = {}
        self._threads = {threading.get_ident()}
        self._calls: list[tuple[int, CodeType]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Profiles this thread and those that start inside. Restores the previous profilers at the end."""
        before, before_in_threads = sys.getprofile(), threading.getprofile()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before_in_threads)

    def take(self) -> Crossed:
        """Stops recording. Returns what was recorded since the last call."""
        self.is_on = False
        calls, self._calls = self._calls, []
        ours = [(thread, code) for thread, code in calls if thread in self._threads]
        by_thread: dict[int, list[str]] = {}
        for thread, code in ours:
            by_thread.setdefault(thread, []).append(code.co_filename)
        return Crossed(
            calls=len(ours),
            functions=len({id(code) for _, code in ours}),
            files=len({code.co_filename for _, code in ours}),
            moves=sum(left != right for files in by_thread.values() for left, right in pairwise(files)),
        )

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code is self._run:
            self._threads.add(threading.get_ident())
        elif self.is_on:
            known = self._is_ours.get(id(code))
            if known is None:
                known = self._is_ours[id(code)] = (code.co_filename.startswith(self._prefix), code)
            if known[0]:
                self._calls.append((threading.get_ident(), code))

"""A connection to a server that a test can cut, as a network does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.faults import Proxy


@contextmanager
def cuttable(target: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the address of a proxy of `target`, and a function that cuts all of its connections. A client can connect
    again at once."""
    proxy, loop = Proxy(int(target.rpartition(":")[2])), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def cut() -> None:
        proxy.cut()

    async def stop() -> None:
        await proxy.stop()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(20)
        yield f"127.0.0.1:{proxy.port}", lambda: asyncio.run_coroutine_threadsafe(cut(), loop).result(20)
        asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

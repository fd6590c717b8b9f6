"""`python -m benchmarks takeover`: how fast another server resumes the sessions of a server that is killed.

Two servers share a Redis. One has many strict sessions that it keeps after their streams, and is killed. A client asks
the other server for all of them at once, and retries for as long as the server says that it must. The figures are the
seconds from the kill until every session was resumed at its acknowledged position, the longest time between two
heartbeats of the other server meanwhile, and Redis operations (scripts of servers, without heartbeats) per session.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

import grpc
import redis

from benchmarks.faults import Redis, Replica
from benchmarks.subjects import REPOSITORY, SMALL, export
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc

_LEASE_S = 3.0
_STREAMS = 16
_AT_ONCE = 48
"""Unanswered resume requests per stream: a server reads at most 64."""
_LONGEST_S = 120.0
_LOOK_S = 0.02
Call = grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]


@dataclass
class Figures:
    """The figures of one takeover.

    seconds: from the kill until all sessions were answered.
    past_lease_s: the same without the lease.
    heartbeat_gap_s: the longest time between two heartbeats of the server that took over.
    operations: Redis operations per session.
    wrong: sessions that were resumed at another position than the acknowledged one.
    """

    sessions: int
    lease_s: float
    seconds: float = 0.0
    past_lease_s: float = 0.0
    heartbeat_gap_s: float = 0.0
    operations: float = 0.0
    wrong: int = 0


class Watch(Thread):
    """Polls the remaining lifetime of a server's key, which each heartbeat extends."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._key = key
        self._is_over = Event()
        self.gap_s = 0.0
        self.num_heartbeats = 0.0

    def run(self) -> None:
        """Polls until `end` is called."""
        before_s = _LEASE_S
        while not self._is_over.wait(_LOOK_S):
            left_ms: int = self._client.pttl(self._key)
            left_s = max(0, left_ms) / 1000
            self.gap_s = max(self.gap_s, _LEASE_S - left_s)
            self.num_heartbeats += left_s > before_s
            before_s = left_s

    def end(self) -> None:
        """Stops polling and waits for the thread's end."""
        self._is_over.set()
        self.join()


async def open_all(target: str, names: list[str]) -> None:
    """Opens sessions, and feeds each a token."""
    policy = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_KEEP)

    async def some(mine: list[str]) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call: Call = inference_pb2_grpc.InferenceStub(channel).Stream()
            for name in mine:
                open_ = pb.Open(model=SMALL.name, durability=pb.DURABILITY_STRICT, on_disconnect=policy)
                await call.write(pb.StreamRequest(request_id=1, session_id=name, open=open_))
                opened = await call.read()
                assert isinstance(opened, pb.StreamResponse)  # noqa: S101  # not EOF: the stream continues
                assert opened.HasField("opened"), opened  # noqa: S101
                await call.write(pb.StreamRequest(request_id=2, session_id=name, feed=pb.Feed(token_ids=[1])))
                fed = await call.read()
                assert isinstance(fed, pb.StreamResponse)  # noqa: S101  # likewise
                assert fed.position == 1, fed  # noqa: S101
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass

    await asyncio.gather(*(some(names[at::_STREAMS]) for at in range(_STREAMS)))


async def resume_all(target: str, names: list[str]) -> int:
    """Resumes sessions, and retries each until it is resumed. Returns how many were not at their acknowledged
    position."""

    async def some(mine: list[str]) -> int:
        wrong, waiting, in_flight = 0, list(mine), 0
        async with grpc.aio.insecure_channel(target) as channel:
            call: Call = inference_pb2_grpc.InferenceStub(channel).Stream()
            while waiting or in_flight:
                while waiting and in_flight < _AT_ONCE:
                    open_ = pb.Open(resume=pb.Resume())
                    await call.write(pb.StreamRequest(request_id=1, session_id=waiting.pop(), open=open_))
                    in_flight += 1
                answer = await call.read()
                assert isinstance(answer, pb.StreamResponse)  # noqa: S101  # not EOF: the stream continues
                in_flight -= 1
                if answer.HasField("opened"):
                    wrong += answer.position != 1
                elif answer.error.reason in ("STORE_UNAVAILABLE", "QUEUE_FULL"):
                    waiting.insert(0, answer.session_id)
                else:
                    raise RuntimeError(f"{answer.session_id}: {answer.error.message}")
            await call.done_writing()
        return wrong

    async with asyncio.timeout(_LONGEST_S):
        return sum(await asyncio.gather(*(some(names[at::_STREAMS]) for at in range(_STREAMS))))


def _scripts(client: redis.Redis) -> int:
    """Returns how many scripts Redis has run."""
    stats = client.info("commandstats")
    assert isinstance(stats, dict)  # noqa: S101  # the client is blocking
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def run(models: Path, count: int) -> Figures:
    """Runs one takeover of `count` sessions."""
    figures = Figures(count, _LEASE_S)
    names = [f"s{number}" for number in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_bytes(secrets.token_bytes(32))
        store = Redis(folder)
        store.start()
        flags = {
            "store": "redis",
            "redis-url": store.url,
            "snapshot-key-file": folder / "key",
            "lease-s": _LEASE_S,
            "max-sessions": count + 100,
            "max-slots": count + 100,
        }
        replicas = [Replica(models, flags), Replica(models, flags)]
        with redis.Redis.from_url(store.url) as client:
            try:
                replicas[1].start()
                (key,) = client.keys("carousel:o:*")
                replicas[0].start()
                asyncio.run(open_all(f"127.0.0.1:{replicas[0].port}", names))
                watch = Watch(client, key.decode())
                before, began_s = _scripts(client), time.perf_counter()
                watch.start()
                replicas[0].kill()
                figures.wrong = asyncio.run(resume_all(f"127.0.0.1:{replicas[1].port}", names))
                figures.seconds = round(time.perf_counter() - began_s, 2)
                watch.end()
                scripts = _scripts(client) - before - watch.num_heartbeats
            finally:
                for replica in replicas:
                    replica.kill()
                store.stop()
    figures.past_lease_s = round(figures.seconds - _LEASE_S, 2)
    figures.heartbeat_gap_s = round(watch.gap_s, 2)
    figures.operations = round(scripts / count, 2)
    return figures


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the process's exit code: 1 when a session was resumed at another position."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks takeover", description=__doc__)
    parser.add_argument(
        "--sessions",
        type=int,
        nargs="+",
        default=[2000, 8000],
        help="numbers of sessions, one takeover each (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    given = parser.parse_args(arguments)
    export(SMALL)
    found = []
    for count in given.sessions:
        found.append(run(REPOSITORY, count))
        print(", ".join(f"{name} {value}" for name, value in asdict(found[-1]).items()), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"takeover": [asdict(figures) for figures in found]}, indent=2) + "\n")
    return int(any(figures.wrong for figures in found))

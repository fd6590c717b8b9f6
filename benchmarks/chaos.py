"""Chaos: sessions at work while their servers are killed or paused, connections cut, their store restarted.

What each session was told must be, to the bit, what it is told when nothing happens. Everything that is chosen comes
from the seed; what the machine adds is when exactly a fault strikes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.chaos_scripts import TRANSLATOR, AnyScript, Batch, Listener, Script
from benchmarks.faults import Envoy, Proxy, Redis, Replica
from benchmarks.subjects import REPOSITORY, SMALL, export
from carousel import AsyncClient
from examples.local_service import local_service

SHIPPED = Path(__file__).parent.parent / "model_repository"
_CLIENTS = 8
_LEASE_S = 1.5
_HELD_UP = 0.4
"""How often a server is paused, or cut from Redis, for up to two and a half leases, in place of being ended."""


@dataclass
class Figures:
    """What came of it. wire: of the servers; kills: servers ended by SIGKILL; leaves: by SIGTERM; cuts: times that all
    connections were broken off; store_restarts: of Redis; pauses: of a server, by SIGSTOP; store_cuts: times that a
    server could not reach Redis; tokens: fed and generated; mismatches: sessions that were told anything else;
    answers_lost: of rows of step batches, which were applied and whose stream was lost before they were answered."""

    store: str
    wire: str
    seed: int
    sessions: int
    kills: int = 0
    leaves: int = 0
    cuts: int = 0
    store_restarts: int = 0
    pauses: int = 0
    store_cuts: int = 0
    requests: int = 0
    tokens: int = 0
    mismatches: int = 0
    answers_lost: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


async def disturbed(scripts: list[AnyScript], target: str, done: asyncio.Event, errors: list[str]) -> None:
    """Runs every script until all that is to happen has happened."""
    clients = [AsyncClient(target) for _ in range(_CLIENTS)]

    async def one(number: int, script: AnyScript) -> None:
        client = clients[number % len(clients)]
        try:
            await script.open(client, resume_timeout=120.0, hold_s=300.0)
            while not done.is_set():
                await script.step()
                await asyncio.sleep(script.rest())
            await script.close()
        except Exception as error:
            errors.append(f"session {number} ({script.model}) after {len(script.told)} requests: {error!r}")

    await asyncio.gather(*(one(number, script) for number, script in enumerate(scripts)))
    for client in clients:
        await client.close()


async def undisturbed(scripts: list[AnyScript], target: str, seed: int) -> list[list[object]]:
    """What the same scripts are told when nothing happens."""
    async with AsyncClient(target) as client:

        async def one(number: int, script: AnyScript) -> list[object]:
            again = type(script)(number, seed)
            await again.open(client, on_disconnect="free")
            for _ in script.told:
                await again.step()
            await again.close()
            return again.told

        return await asyncio.gather(*(one(number, script) for number, script in enumerate(scripts)))


async def faults(
    figures: Figures,
    replicas: list[Replica],
    proxy: Proxy,
    redis: Redis | None,
    ways: list[Proxy],
    *,
    kills: int,
) -> None:
    """What happens, one after another, at random moments. ways: of the servers to Redis."""
    rng = random.Random(f"{figures.seed}/faults")
    while figures.kills < kills:
        await asyncio.sleep(rng.uniform(0.3, 2.0))
        replica = rng.choice(replicas)
        if rng.random() < _HELD_UP:
            seconds = rng.uniform(0.2, 2.5 * _LEASE_S)
            if ways and rng.random() < 0.5:
                await rng.choice(ways).block(seconds)
                figures.store_cuts += 1
            else:
                await asyncio.to_thread(replica.pause, seconds)
                figures.pauses += 1
            continue
        if rng.random() < 0.15:
            await asyncio.to_thread(replica.leave)
            figures.leaves += 1
        else:
            await asyncio.to_thread(replica.kill)
            figures.kills += 1
        if rng.random() < 0.4:
            proxy.cut()
            figures.cuts += 1
        if redis is not None and rng.random() < 0.2:
            await asyncio.to_thread(redis.stop)
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            await asyncio.to_thread(redis.start)
            figures.store_restarts += 1
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        await asyncio.to_thread(replica.start)
        if rng.random() < 0.4:
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            proxy.cut()
            figures.cuts += 1
    await asyncio.sleep(2.0)


def _kind(number: int) -> type[AnyScript]:
    """What a session is: in twenty a batch, and five that listen."""
    if number % 20 == 0:
        return Batch
    return Listener if number % 4 == 3 else Script


async def run(store: str, models: Path, *, wire: str, sessions: int, kills: int, seed: int) -> Figures:
    """One store's chaos."""
    figures = Figures(store, wire, seed, sessions)
    scripts: list[AnyScript] = [_kind(number)(number, seed) for number in range(sessions)]
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_bytes(secrets.token_bytes(32))
        common = {
            "wire": wire,
            "snapshot-key-file": folder / "key",
            "checkpoint-interval-s": 0.5,
            "shutdown-grace-s": 3,
            "hold-s": 300,
            "lease-s": _LEASE_S,
        }
        redis = envoy = None
        ways: list[Proxy] = []
        if store == "redis":
            redis = Redis(folder)
            redis.start()
            replicas = []
            for _ in range(2):
                ways.append(Proxy(redis.port))
                await ways[-1].start()
                url = f"redis://127.0.0.1:{ways[-1].port}/0"
                replicas.append(Replica(models, {**common, "store": "redis", "redis-url": url}))
        else:
            replicas = [Replica(models, {**common, "store": "lmdb", "data-folder": folder / "data"})]
        for replica in replicas:
            await asyncio.to_thread(replica.start)
        if redis is not None:
            envoy = Envoy([replica.port for replica in replicas], folder)
        proxy = Proxy(envoy.port if envoy is not None else replicas[0].port)
        await proxy.start()
        done = asyncio.Event()
        at_work = asyncio.create_task(disturbed(scripts, f"127.0.0.1:{proxy.port}", done, figures.errors))
        try:
            await faults(figures, replicas, proxy, redis, ways, kills=kills)
        finally:
            done.set()
            await at_work
            for one in (proxy, *ways):
                await one.stop()
            for replica in replicas:
                await asyncio.to_thread(replica.kill)
            if envoy is not None:
                envoy.stop()
            if redis is not None:
                redis.stop()
    figures.seconds = round(time.perf_counter() - began_s, 1)
    with local_service(models) as service:
        expected = await undisturbed(scripts, service.target, seed)
    for number, (script, told) in enumerate(zip(scripts, expected, strict=True)):
        figures.requests += len(script.told)
        figures.tokens += script.num_tokens
        figures.answers_lost += script.num_lost
        at = next((at for at, pair in enumerate(zip(script.told, told, strict=True)) if not script.same(*pair)), None)
        if at is not None:
            figures.mismatches += 1
            figures.errors.append(
                f"session {number} ({script.model}) was told otherwise from request {at} on:"
                f" {str(script.told[at])[:300]} where it should have been {str(told[at])[:300]}"
            )
    return figures


def make_models(folder: Path) -> Path:
    """A repository of two shipped models and two of random weights, one of them a translator of two files."""
    export(SMALL)
    TRANSLATOR.export()
    for name in ("g2p-en", "morse"):
        (folder / name).symlink_to((SHIPPED / name).resolve())
    for made in (REPOSITORY / SMALL.name, TRANSLATOR.repository / TRANSLATOR.name):
        (folder / made.name).symlink_to(made.resolve())
    return folder


def main(arguments: list[str]) -> int:
    """`python -m benchmarks chaos`. 1 when anything was told otherwise, or a session has failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=__doc__)
    parser.add_argument("--store", choices=["lmdb", "redis", "both"], default="both")
    parser.add_argument("--wire", choices=["auto", "grpcio", "envoy"], default="auto", help="of the servers")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    found = []
    with tempfile.TemporaryDirectory() as name:
        models = make_models(Path(name))
        for store in ("lmdb", "redis") if given.store == "both" else (given.store,):
            figures = asyncio.run(
                run(store, models, wire=given.wire, sessions=given.sessions, kills=given.kills, seed=given.seed),
                debug=False,
            )
            found.append(figures)
            told = ", ".join(f"{name} {value}" for name, value in asdict(figures).items() if name != "errors")
            print(told, flush=True)
            for error in figures.errors[:20]:
                print(f"  {error}", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps({"chaos": [asdict(figures) for figures in found]}, indent=2) + "\n")
    return int(any(figures.mismatches or figures.errors for figures in found))

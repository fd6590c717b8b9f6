"""Chaos: sessions run while their servers are killed or paused, connections are cut and their store restarts.

Each session must receive results that are bit-identical to an undisturbed run. The seed determines every choice; only
the exact moment of a fault depends on the machine.
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
"""The probability that a fault pauses a server, or cuts it from Redis, for up to two and a half leases, instead of
ending it."""


@dataclass
class Figures:
    """The results of one run.

    wire: of the servers.
    kills: servers ended by SIGKILL.
    leaves: servers ended by SIGTERM.
    cuts: how often all connections were broken.
    store_restarts: restarts of Redis.
    pauses: pauses of a server by SIGSTOP.
    store_cuts: how often a server could not reach Redis.
    tokens: tokens fed and generated.
    mismatches: sessions with results that differ from the undisturbed run.
    answers_lost: rows of step batches that were applied, and whose stream broke before their response arrived.
    """

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
    """Runs every script until `done` is set. Appends failures of sessions to `errors`."""
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
            errors.append(f"session {number} ({script.model}) after {len(script.answers)} requests: {error!r}")

    await asyncio.gather(*(one(number, script) for number, script in enumerate(scripts)))
    for client in clients:
        await client.close()


async def undisturbed(scripts: list[AnyScript], target: str, seed: int) -> list[list[object]]:
    """Runs the same scripts on a server without faults. Returns the results of each, as many as it received before."""
    async with AsyncClient(target) as client:

        async def one(number: int, script: AnyScript) -> list[object]:
            again = type(script)(number, seed)
            await again.open(client, on_disconnect="free")
            for _ in script.answers:
                await again.step()
            await again.close()
            return again.answers

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
    """Causes faults one after another at random moments, until `kills` servers were killed. ways: the servers' proxies
    to Redis."""
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


def kind_of(number: int) -> type[AnyScript]:
    """Returns the kind of session number `number`: of 20 sessions, one is a batch and five are listeners."""
    if number % 20 == 0:
        return Batch
    return Listener if number % 4 == 3 else Script


async def run(store: str, models: Path, *, wire: str, sessions: int, kills: int, seed: int) -> Figures:
    """Runs the chaos for one store."""
    figures = Figures(store, wire, seed, sessions)
    scripts: list[AnyScript] = [kind_of(number)(number, seed) for number in range(sessions)]
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
    for number, (script, answers) in enumerate(zip(scripts, expected, strict=True)):
        figures.requests += len(script.answers)
        figures.tokens += script.num_tokens
        figures.answers_lost += script.num_lost
        pairs = enumerate(zip(script.answers, answers, strict=True))
        at = next((at for at, pair in pairs if not script.same(*pair)), None)
        if at is not None:
            figures.mismatches += 1
            figures.errors.append(
                f"session {number} ({script.model}): request {at} returned {str(script.answers[at])[:300]}, expected"
                f" {str(answers[at])[:300]}"
            )
    return figures


def make_models(folder: Path) -> Path:
    """Returns `folder` as a repository of two shipped models and two with random weights, one of them a translator of
    two files."""
    export(SMALL)
    TRANSLATOR.export()
    for name in ("g2p-en", "morse"):
        (folder / name).symlink_to((SHIPPED / name).resolve())
    for made in (REPOSITORY / SMALL.name, TRANSLATOR.repository / TRANSLATOR.name):
        (folder / made.name).symlink_to(made.resolve())
    return folder


def main(arguments: list[str]) -> int:
    """Runs `python -m benchmarks chaos`. Returns 1 when a result differed or a session failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=__doc__)
    parser.add_argument("--store", choices=["lmdb", "redis", "both"], default="both")
    parser.add_argument("--wire", choices=["auto", "grpcio", "envoy"], default="auto", help="wire of the servers")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
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
            counts = ", ".join(f"{name} {value}" for name, value in asdict(figures).items() if name != "errors")
            print(counts, flush=True)
            for error in figures.errors[:20]:
                print(f"  {error}", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps({"chaos": [asdict(figures) for figures in found]}, indent=2) + "\n")
    return int(any(figures.mismatches or figures.errors for figures in found))

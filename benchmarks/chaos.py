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
from typing import Any

from benchmarks.faults import Envoy, Proxy, Redis, Replica
from benchmarks.subjects import REPOSITORY, SMALL, export
from carousel import AsyncClient, AsyncSession, UnavailableError
from examples.local_service import local_service

SHIPPED = Path(__file__).parent.parent / "model_repository" / "g2p-en"
_MODELS = (("g2p-en", 42), (SMALL.name, SMALL.vocabulary))
_CLIENTS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LEASE_S = 1.5
_HELD_UP = 0.4
"""How often a server is paused, or cut from Redis, for up to two and a half leases, in place of being ended."""
_PACE_S = 0.25
"""The longest that a session rests between two requests: users do, and the faults must find it at rest as well."""


@dataclass
class Figures:
    """What came of it. kills: servers ended by SIGKILL; leaves: by SIGTERM; cuts: times that all connections were
    broken off; store_restarts: of Redis; pauses: of a server, by SIGSTOP; store_cuts: times that a server could not
    reach Redis; tokens: fed and generated; mismatches: sessions that were told anything
    else."""

    store: str
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
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


class Script:
    """What one session does: the same every time, as far as it goes. number: which session; seed: of all."""

    def __init__(self, number: int, seed: int) -> None:
        self.model, self._vocabulary_size = _MODELS[number % len(_MODELS)]
        self._rng = random.Random(f"{seed}/{number}")
        self.source = None
        if self.model == "g2p-en":
            self.source = "".join(self._rng.choice(_LETTERS) for _ in range(self._rng.randint(3, 20)))
        self.told: list[object] = []
        self.num_tokens = 0

    async def open(self, client: AsyncClient, **options: Any) -> AsyncSession:
        """The session. There is nothing to go on with before it is open: as any program, it tries again."""
        for _ in range(600):
            try:
                return await client.session(self.model, self.source, **options)
            except UnavailableError:
                await asyncio.sleep(0.1)
        raise TimeoutError("no server has opened a session within a minute")

    async def step(self, session: AsyncSession) -> None:
        """The next request."""
        rng = self._rng
        kind = rng.random() if self.told else 0.0
        if kind < 0.45:
            tokens = [rng.randrange(3, self._vocabulary_size) for _ in range(rng.choice([1, 1, 1, 2, 5, 40]))]
            how: dict[str, Any] = rng.choice([{}, {"top_k": 3}, {"logits": True}, {"every_position": True}])
            step = await session.feed(tokens, **how)
            self.told.append((step.position, step.outputs))
            self.num_tokens += len(tokens)
        elif kind < 0.9:
            count = rng.choice([1, 5, 50, 400])
            how = {"max_tokens": count, "min_tokens": count}
            if rng.random() < 0.5:
                how |= {"temperature": 0.9, "top_k": 8, "seed": rng.randrange(1 << 30), "repetition_penalty": 1.1}
            if rng.random() < 0.3:
                how["log_probabilities"] = True
            tokens_told = [token async for token in session.generate(**how)]
            self.told.append((session.position, tokens_told))
            self.num_tokens += len(tokens_told)
        elif kind < 0.95:
            targets = [[rng.randrange(3, self._vocabulary_size) for _ in range(4)] for _ in range(2)]
            self.told.append((session.position, await session.score(targets)))
        else:
            found = session.generate(beam_size=3, max_tokens=8)
            self.told.append((session.position, [token async for token in found], found.hypotheses))

    def rest(self) -> float:
        """Seconds to rest before the next request."""
        return random.random() * _PACE_S


async def disturbed(scripts: list[Script], target: str, done: asyncio.Event, errors: list[str]) -> None:
    """Runs every script until all that is to happen has happened."""
    clients = [AsyncClient(target) for _ in range(_CLIENTS)]

    async def one(number: int, script: Script) -> None:
        client = clients[number % len(clients)]
        try:
            session = await script.open(client, resume_timeout=120.0, hold_s=300.0, unattended=bool(number % 3))
            while not done.is_set():
                await script.step(session)
                await asyncio.sleep(script.rest())
            await session.close()
        except Exception as error:
            errors.append(f"session {number} ({script.model}) after {len(script.told)} requests: {error!r}")

    await asyncio.gather(*(one(number, script) for number, script in enumerate(scripts)))
    for client in clients:
        await client.close()


async def undisturbed(scripts: list[Script], target: str, seed: int) -> list[list[object]]:
    """What the same scripts are told when nothing happens."""
    async with AsyncClient(target) as client:

        async def one(number: int, script: Script) -> list[object]:
            again = Script(number, seed)
            session = await again.open(client, on_disconnect="free")
            for _ in script.told:
                await again.step(session)
            await session.close()
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


async def run(store: str, models: Path, *, sessions: int, kills: int, seed: int) -> Figures:
    """One store's chaos."""
    figures = Figures(store, seed, sessions)
    scripts = [Script(number, seed) for number in range(sessions)]
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_bytes(secrets.token_bytes(32))
        common = {
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
        if script.told != told:
            figures.mismatches += 1
            at = next(at for at, (one, other) in enumerate(zip(script.told, told, strict=True)) if one != other)
            figures.errors.append(
                f"session {number} ({script.model}) was told otherwise from request {at} on:"
                f" {str(script.told[at])[:300]} where it should have been {str(told[at])[:300]}"
            )
    return figures


def make_models(folder: Path) -> Path:
    """A repository of the shipped model and one of random weights."""
    export(SMALL)
    (folder / "g2p-en").symlink_to(SHIPPED.resolve())
    (folder / SMALL.name).symlink_to((REPOSITORY / SMALL.name).resolve())
    return folder


def main(arguments: list[str]) -> int:
    """`python -m benchmarks chaos`. 1 when anything was told otherwise, or a session has failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=__doc__)
    parser.add_argument("--store", choices=["lmdb", "redis", "both"], default="both")
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
                run(store, models, sessions=given.sessions, kills=given.kills, seed=given.seed), debug=False
            )
            found.append(figures)
            told = ", ".join(f"{name} {value}" for name, value in asdict(figures).items() if name != "errors")
            print(told, flush=True)
            for error in figures.errors[:20]:
                print(f"  {error}", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps({"chaos": [asdict(figures) for figures in found]}, indent=2) + "\n")
    return int(any(figures.mismatches or figures.errors for figures in found))

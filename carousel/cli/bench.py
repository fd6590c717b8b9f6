"""`carousel bench`: measures a server with sessions that feed again as soon as they are answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from carousel._requests import Source
from carousel.async_session import AsyncSession
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.printing import AsJson, print_json, print_table, progress
from carousel.values import ModelInfo


def bench(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    sessions: Annotated[int, typer.Option(min=1, max=10_000, help="Number of sessions.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration in seconds.")] = 10.0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each message.")] = 1,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the random input.")] = 0,
    constant: Given = None,
    as_json: AsJson = False,
) -> None:
    """Feeds random tokens or vectors to sessions, each again as soon as it is answered, and prints counts and
    latencies.

    This client is written in Python, and uses a whole core long before the server is busy: run several at once.
    """
    connection: Connection = context.obj
    latencies, elapsed_s = asyncio.run(
        _run(
            connection, model, sessions, seconds, tokens, version=version, variant=variant, seed=seed, constant=constant
        )
    )
    latencies.sort()

    def percentile(share: float) -> float:
        return latencies[min(len(latencies) - 1, int(share * len(latencies)))] * 1e3 if latencies else 0.0

    found = {
        "sessions": sessions,
        "messages": len(latencies),
        "tokens_per_s": len(latencies) * tokens / elapsed_s,
        "messages_per_s": len(latencies) / elapsed_s,
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "max_ms": percentile(1.0),
    }
    if as_json:
        print_json({name: round(value, 3) for name, value in found.items()})
        return
    shown = {name: f"{value:,.2f}" if name.endswith("_ms") else f"{value:,.0f}" for name, value in found.items()}
    print_table([f"{name.upper()}#" for name in shown], [list(shown.values())], empty="")


async def _run(
    connection: Connection,
    model: str,
    num_sessions: int,
    seconds: float,
    num_tokens: int,
    *,
    version: int,
    variant: str,
    seed: int,
    constant: Sequence[str] | None,
) -> tuple[list[float], float]:
    latencies: list[float] = []
    async with connection.async_client() as client:
        info = await client.model(model, version=version)
        constants = constants_of(info, constant)
        opened = [
            await client.session(
                model,
                _source(info, seed),
                version=version,
                variant=variant,
                on_disconnect="free",
                constants=constants,
            )
            for _ in range(num_sessions)
        ]
        began_s = time.perf_counter()
        with progress() as bar:
            task = bar.add_task("feeding", total=round(seconds))

            async def tick() -> None:
                while True:
                    bar.update(task, completed=int(time.perf_counter() - began_s))
                    await asyncio.sleep(0.25)

            async def work(number: int) -> None:
                chance = random.Random(seed + number)
                while time.perf_counter() - began_s < seconds:
                    asked_s = time.perf_counter()
                    await _feed(opened[number], info, chance, num_tokens)
                    latencies.append(time.perf_counter() - asked_s)

            ticking = asyncio.create_task(tick())
            try:
                await asyncio.gather(*map(work, range(num_sessions)))
            finally:
                ticking.cancel()
        elapsed_s = time.perf_counter() - began_s
        for session in opened:
            await session.close()
    return latencies, elapsed_s


async def _feed(session: AsyncSession, info: ModelInfo, chance: random.Random, count: int) -> None:
    if info.feature_size:
        await session.feed(features=[random_step(chance, info) for _ in range(count)])
    else:
        ids = range(len(info.input_vocabulary or info.target_vocabulary))
        await session.feed(chance.choices(ids, k=count))


def random_step(chance: random.Random, info: ModelInfo) -> list[float]:
    """Returns random input for a step: real numbers, or 0 and 1 for integer inputs. No step is the session's last."""
    if not info.inputs:
        return _vector(chance, info.feature_size)
    numbers: list[float] = []
    for port in info.inputs:
        if port.is_end:
            numbers += [0.0] * port.size
        elif port.dtype.startswith("float"):
            numbers += _vector(chance, port.size)
        else:
            numbers += [float(chance.randrange(2)) for _ in range(port.size)]
    return numbers


def _source(info: ModelInfo, seed: int) -> Source | None:
    """Returns a source of eight random tokens or vectors, for models with an encoder."""
    chance = random.Random(seed)
    if info.source_feature_size:
        return [_vector(chance, info.source_feature_size) for _ in range(8)]
    return chance.choices(range(4, len(info.source_vocabulary)), k=8) if info.has_encoder else None


def _vector(chance: random.Random, size: int) -> list[float]:
    return [chance.gauss(0.0, 1.0) for _ in range(size)]

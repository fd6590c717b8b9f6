"""What the clients of `chaos` do. A script makes the same requests in every run; only their number depends on how long
it runs."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from benchmarks.subjects import SMALL
from benchmarks.translators import Translator
from carousel import AsyncClient, AsyncSessionBatch, UnavailableError

T = TypeVar("T")
TRANSLATOR = Translator("translator-chaos", 64, 64)
"""Its model has two files, an encoder and a decoder."""
_MODELS = (("g2p-en", 42), (SMALL.name, SMALL.vocabulary), (TRANSLATOR.name, TRANSLATOR.tokens))
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PACE_S = 0.25
"""The longest pause of a session between two requests. Users pause too, and faults must also hit idle sessions."""
_ROWS = 6
"""Number of sessions in a batch."""
_FRAME, _RATE = 320, 8000
"""Samples per step of the transducer, and per second."""


class Script:
    """The requests of one session, the same in every run. number: which session; seed: the seed of all sessions."""

    def __init__(self, number: int, seed: int) -> None:
        self.model, self._vocabulary_size = _MODELS[number % len(_MODELS)]
        self._number = number
        self._rng = random.Random(f"{seed}/{number}")
        self.source = None
        if self.model == "g2p-en":
            self.source = "".join(self._rng.choice(_LETTERS) for _ in range(self._rng.randint(3, 20)))
        elif self.model == TRANSLATOR.name:
            tokens = range(TRANSLATOR.tokens)
            self.source = " ".join(str(self._rng.choice(tokens)) for _ in range(self._rng.randint(3, 20)))
        self.answers: list[object] = []
        self.num_tokens = self.num_lost = 0

    async def open(self, client: AsyncClient, **options: Any) -> None:
        """Opens the session. Retries, as any program must, because an unopened session has nothing to resume."""
        if options.get("on_disconnect") != "free":
            options["unattended"] = bool(self._number % 3)
        self._session = await _opened(lambda: client.session(self.model, self.source, **options))

    async def close(self) -> None:
        """Closes the session."""
        await self._session.close()

    def same(self, answers: object, other: object) -> bool:
        """Returns whether two results are equal."""
        return answers == other

    async def step(self) -> None:
        """Sends the next request and records its result."""
        rng, session = self._rng, self._session
        kind = rng.random() if self.answers else 0.0
        if kind < 0.45:
            tokens = [rng.randrange(3, self._vocabulary_size) for _ in range(rng.choice([1, 1, 1, 2, 5, 40]))]
            how: dict[str, Any] = rng.choice([{}, {"top_k": 3}, {"logits": True}, {"every_position": True}])
            step = await session.feed(tokens, **how)
            self.answers.append((step.position, step.outputs))
            self.num_tokens += len(tokens)
        elif kind < 0.9:
            count = rng.choice([1, 5, 50, 400])
            how = {"max_tokens": count, "min_tokens": count}
            if rng.random() < 0.5:
                how |= {"temperature": 0.9, "top_k": 8, "seed": rng.randrange(1 << 30), "repetition_penalty": 1.1}
            if rng.random() < 0.3:
                how["log_probabilities"] = True
            generated = [token async for token in session.generate(**how)]
            self.answers.append((session.position, generated))
            self.num_tokens += len(generated)
        elif kind < 0.95:
            targets = [[rng.randrange(3, self._vocabulary_size) for _ in range(4)] for _ in range(2)]
            self.answers.append((session.position, await session.score(targets)))
        else:
            found = session.generate(beam_size=3, max_tokens=8)
            self.answers.append((session.position, [token async for token in found], found.hypotheses))

    def rest(self) -> float:
        """Returns the seconds to wait before the next request."""
        return random.random() * _PACE_S


class Batch:
    """Sessions that step together. number: which batch; seed: the seed of all sessions.

    A row whose response was lost with its stream counts as consumed. It is None in `answers`.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.model = SMALL.name
        self._rng = random.Random(f"{seed}/{number}")
        self.answers: list[object] = []
        self.num_tokens = self.num_lost = 0

    async def open(self, client: AsyncClient, **options: Any) -> None:
        """Opens the sessions. Retries until they are open."""

        async def make() -> AsyncSessionBatch:
            batch = client.batch(self.model, **options)
            await batch.open_many([None] * _ROWS)
            return batch

        self._batch = await _opened(make)

    async def close(self) -> None:
        """Closes the sessions."""
        await self._batch.close()

    def same(self, answers: object, other: object) -> bool:
        """Returns whether two results are equal, except for rows whose response was lost."""
        assert isinstance(answers, list)  # noqa: S101  # made by `step`
        assert isinstance(other, list)  # noqa: S101  # likewise
        return all(mine is None or mine == theirs for mine, theirs in zip(answers, other, strict=True))

    async def step(self) -> None:
        """Steps all sessions once and records the results."""
        tokens = [self._rng.randrange(3, SMALL.vocabulary) for _ in range(_ROWS)]
        step = await self._batch.step(tokens, logits=True)
        rows: list[object] = []
        for row in range(_ROWS):
            error = step.errors.get(row)
            if error is not None and error.reason != "OUTPUTS_LOST":
                raise error
            self.num_lost += error is not None
            logits = step.logits[row * SMALL.vocabulary : (row + 1) * SMALL.vocabulary]
            rows.append(None if error is not None else (step.positions[row], logits))
        self.answers.append(rows)
        self.num_tokens += _ROWS

    def rest(self) -> float:
        """Returns the seconds to wait before the next step."""
        return random.random() * _PACE_S


class Listener:
    """A session of the shipped transducer that is fed tones, which start and stop at random. number: which session;
    seed: the seed of all sessions."""

    def __init__(self, number: int, seed: int) -> None:
        self.model = "morse"
        self._number = number
        self._rng = random.Random(f"{seed}/{number}")
        self._is_on = False
        self._phase = 0
        self.answers: list[object] = []
        self.num_tokens = self.num_lost = 0

    async def open(self, client: AsyncClient, **options: Any) -> None:
        """Opens the session. Retries until it is open."""
        self._session = await _opened(lambda: client.session(self.model, **options))

    async def close(self) -> None:
        """Closes the session."""
        await self._session.close()

    def same(self, answers: object, other: object) -> bool:
        """Returns whether two results are equal."""
        return answers == other

    async def step(self) -> None:
        """Feeds the next frames, 40 ms each, and records the result."""
        frames = [self.frame() for _ in range(self._rng.choice([1, 1, 2, 5, 25]))]
        step = await self._session.feed(features=frames)
        self.answers.append((step.position, step.outputs))
        self.num_tokens += len(frames)

    def rest(self) -> float:
        """Returns the seconds to wait before the next request."""
        return random.random() * _PACE_S

    def frame(self) -> list[float]:
        """Returns the samples of the next frame."""
        if self._rng.random() < 0.4:
            self._is_on = not self._is_on
        samples = []
        for _ in range(_FRAME):
            self._phase += 1
            samples.append(0.4 * math.sin(2 * math.pi * 600 * self._phase / _RATE) if self._is_on else 0.0)
        return samples


AnyScript = Script | Batch | Listener


async def _opened(open_: Callable[[], Awaitable[T]]) -> T:
    for _ in range(600):
        try:
            return await open_()
        except UnavailableError:
            await asyncio.sleep(0.1)
    raise TimeoutError("no server opened a session within a minute")

"""A client that steps one session with `Inference.Step`, without a stream, and checks the answers.

Every feed has a position. Some feeds are sent twice at once, some are sent again after their answer, and some calls are
abandoned in the middle and sent again unchanged. Each feed must be applied once. Now and then the client closes the
session and opens a new one under its name, or calls another replica, which then resumes the session.
"""

from __future__ import annotations

import asyncio
import random
from functools import reduce
from typing import Any, NamedTuple

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.arithmetic import ZERO, Hidden
from simulation.bundles import LAZY
from simulation.checks import Journal
from simulation.system import Replica

_RETRIED = {"STORE_UNAVAILABLE", "SHUTTING_DOWN", "SESSION_MOVED", "TOO_MANY_SESSIONS", "NO_SLOT", "QUEUE_FULL"}
_MOST_TOKENS = 5
_RETRY_S = 0.2
_CALL_S = 30.0
"""Virtual seconds within which a call must succeed, including all retries."""


class Feed(NamedTuple):
    """A feed that was applied. start: the position before it; logits: [V], after it."""

    start: int
    tokens: tuple[int, ...]
    logits: tuple[float, ...]


class Visitor:
    """Steps the session `name`. fed: all applied feeds in order, including those of earlier sessions of that name;
    is_done: whether it has closed its last session."""

    def __init__(self, name: str, replicas: list[Replica], journal: Journal, rng: random.Random) -> None:
        self.name = name
        self.fed: list[Feed] = []
        self.is_done = False
        self._replicas = replicas
        self._journal = journal
        self._rng = rng
        self._hidden: Hidden = ZERO
        self._position = 0
        self._slot = 0

    async def run(self, num_calls: int) -> None:
        """Sends `num_calls` Steps, and one more that closes the session."""
        for number in range(num_calls + 1):
            await asyncio.sleep(self._rng.random() * 0.3)
            is_last = number == num_calls
            await self._feed(does_close=is_last or self._rng.random() < 0.1)
        self.is_done = True

    async def _feed(self, *, does_close: bool) -> None:
        rng = self._rng
        if rng.random() < 0.15:
            self._slot = rng.randrange(len(self._replicas))
        tokens = tuple(rng.randrange(3, 8) for _ in range(rng.randint(1, _MOST_TOKENS)))
        outputs = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)
        request = pb.StepRequest(session_id=self.name, close=does_close)
        request.feed.CopyFrom(pb.Feed(token_ids=tokens, position=self._position, outputs=outputs))
        if self._position == 0:
            request.open.CopyFrom(pb.Open(model=LAZY, durability=pb.DURABILITY_CHECKPOINT))
        start, self._hidden = self._position, reduce(Hidden.step, tokens, self._hidden)
        self._position += len(tokens)
        self.fed.append(Feed(start, tokens, self._hidden.logits))
        self._journal.note(f"-- {self.name} @ {self._replicas[self._slot].life.name}: {self.fed[-1]}")
        is_twice = not does_close and rng.random() < 0.2
        sent = [self._sent(request, is_given_up=rng.random() < 0.2) for _ in range(1 + is_twice)]
        for answer in await asyncio.gather(*sent):
            self._check(request, answer)
        if does_close:
            self._hidden, self._position = ZERO, 0
        elif rng.random() < 0.2:
            self._check(request, await self._sent(request, is_given_up=False), is_again=True)

    async def _sent(self, request: pb.StepRequest, *, is_given_up: bool) -> Any:
        """Retries a call until it is answered, and returns the answer. is_given_up: whether to abandon the first call.
        Returns None if an abandoned call has closed the session, or after a violation."""
        replica, until_s = self._replicas[self._slot], self._journal.now() + _CALL_S
        if is_given_up:
            call = replica.call("Inference.Step", request)
            await asyncio.wait([call], timeout=self._rng.random() * 0.02)
            call.cancel()
        while True:
            answer = await replica.call("Inference.Step", request)
            if not isinstance(answer, error_pb2.Error):
                return answer
            self._journal.note(f"{self.name}@{replica.life.name} Step: {answer.reason} {answer.message[:100]}")
            if is_given_up and request.close and answer.reason == "SESSION_NOT_FOUND":
                if answer.metadata["position"] != str(self._position):
                    self._journal.violate(f"{self.name!r} was closed at {self._position}, but the answer is {answer}")
                return None
            if answer.reason not in _RETRIED or self._journal.now() > until_s:
                self._journal.violate(f"a Step of {self.name!r} at {self._position} fails: {answer}")
                return None
            await asyncio.sleep(_RETRY_S)

    def _check(self, request: pb.StepRequest, answer: pb.StepResponse | None, *, is_again: bool = False) -> None:
        if answer is None:
            return
        end = request.feed.position + len(request.feed.token_ids)
        answered = (answer.position, tuple(answer.fed.outputs[-1].logits), answer.HasField("closed"))
        if answered != (end, self.fed[-1].logits, request.close):
            self._journal.violate(f"a Step of {self.name!r} is answered {answer}, and {self.fed[-1]} was expected")
        if is_again and not answer.fed.replayed:
            self._journal.violate(f"a Step of {self.name!r} counts twice, at {end}")

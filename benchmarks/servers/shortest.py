"""The shortest server that keeps sessions' state and batches continuously: the lower bound for the path of a token.

    python -m benchmarks.servers.shortest BUNDLE

It has no checks, no limits, no features and one session per stream. It collects feeds of one token until the next turn
of the event loop and runs them as one batch. Its responses have the same fields as the service's: the position, the
next token and its name.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.bare import BareStep, load_step
from benchmarks.servers.host import Context, Handler, opened, run
from carousel.v1 import inference_pb2 as pb

NUM_SLOTS = 4096
SESSION_ID = "aaaaaaaaaaaa"
"""As long as the ids that the service makes."""


class Lane:
    """The session of a stream: its slot, its position, and its unwritten responses."""

    __slots__ = ("answers", "position", "slot", "writer")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.position = 0
        self.answers: list[pb.StreamResponse] = []
        self.writer: asyncio.Future[None] | None = None

    def send(self, answer: pb.StreamResponse) -> None:
        """Queues a response for the task that writes."""
        self.answers.append(answer)
        if self.writer is not None and not self.writer.done():
            self.writer.set_result(None)

    async def write(self, context: Context) -> None:
        """Writes responses until the task is cancelled."""
        while True:
            if not self.answers:
                self.writer = asyncio.get_running_loop().create_future()
                await self.writer
            await context.write(self.answers.pop(0))


class Shortest:
    """All sessions' state, and the feeds of the next batch."""

    def __init__(self, bundle: BareStep) -> None:
        """Raises ValueError when the server cannot serve the bundle."""
        states = bundle.zeros(NUM_SLOTS)
        if not bundle.has_choice or any(state.shape[1] != NUM_SLOTS for state in states):
            raise ValueError(
                "the step graph must choose the next token, and the second axis of each state must be the batch"
            )
        self._session = bundle.session
        self._names = bundle.names
        self._outputs = bundle.choice_outputs
        self._tokens, self._lengths = bundle.token_input, bundle.lengths_input
        self._states = list(zip(bundle.state_inputs, states, strict=True))  # [L, slots, H] each
        self._ones = np.ones(NUM_SLOTS, np.int64)
        self._free = list(range(NUM_SLOTS))
        self._pending: list[tuple[Lane, int, int]] = []

    async def stream(self, _: Any, context: Context) -> None:
        """Serves one session: the first message opens it, the others step it."""
        lane = Lane(self._free.pop())
        writer = asyncio.create_task(lane.write(context))
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                self._take(lane, request)
        finally:
            writer.cancel()
            self._free.append(lane.slot)

    def _take(self, lane: Lane, request: pb.StreamRequest) -> None:
        if request.WhichOneof("request") == "feed":
            if not self._pending:
                asyncio.get_running_loop().call_soon(self._step)
            self._pending.append((lane, request.request_id, request.feed.token_ids[0]))
        else:
            for _, state in self._states:
                state[:, lane.slot] = 0
            lane.send(opened(request, "shortest"))

    def _step(self) -> None:
        batch, self._pending = self._pending, []
        slots = [lane.slot for lane, _, _ in batch]
        feeds = {name: state[:, slots] for name, state in self._states}
        feeds[self._tokens] = np.array([token for _, _, token in batch], np.int64)[:, None]
        if self._lengths is not None:
            feeds[self._lengths] = self._ones[: len(batch)]
        chosen, *following = self._session.run(self._outputs, feeds)
        for (_, state), rows in zip(self._states, following, strict=True):
            state[:, slots] = rows
        for (lane, request_id, _), token in zip(batch, chosen[:, 0].tolist(), strict=True):
            lane.position += 1
            answer = pb.StreamResponse(request_id=request_id, session_id=SESSION_ID, position=lane.position)
            output = answer.fed.outputs.add()
            output.position = lane.position
            best = output.tokens.add()
            best.id = token
            best.text = self._names[token]
            lane.send(answer)


def make(arguments: list[str]) -> Handler:
    """Returns the handler. arguments: the bundle."""
    return Shortest(load_step(Path(arguments[0]))).stream


if __name__ == "__main__":
    run(make)

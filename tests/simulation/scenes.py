"""Helpers of the scenarios: openings, feeds, and a simulation that must end without violations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from carousel.v1 import inference_pb2 as pb
from simulation.bundles import LAZY
from simulation.knobs import Knobs
from simulation.run import run_seed
from simulation.streams import ClientStream
from simulation.world import World, simulate

STRICT, CHECKPOINT, NONE = pb.DURABILITY_STRICT, pb.DURABILITY_CHECKPOINT, pb.DURABILITY_NONE
RESUME = pb.Open(resume=pb.Resume())
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)


def play(
    act: Callable[[World], Awaitable[None]], *, seed: str = "scene", does_finish: bool = True, **knobs: Any
) -> None:
    """Plays a scenario. Fails when something is violated during it or left after it."""
    journal = simulate(act, seed=seed, knobs=Knobs(**knobs), does_finish=does_finish)
    assert not journal.violations, "\n".join([*journal.violations, "", *list(journal.trace)[-40:]])


def hold(seconds: float = 0.0) -> pb.DisconnectPolicy:
    """Returns a policy that holds the session when its stream ends."""
    return _policy(pb.DISCONNECT_ACTION_HOLD, seconds)


def keep(seconds: float = 0.0) -> pb.DisconnectPolicy:
    """Returns a policy that keeps the session when its stream ends."""
    return _policy(pb.DISCONNECT_ACTION_KEEP, seconds)


def plain(**fields: Any) -> pb.Open:
    """Returns an opening of a new session of the model without a start token."""
    return pb.Open(model=LAZY, **fields)


def feed(*tokens: int, position: int | None = None, mark: bool = False) -> pb.Feed:
    """Returns a feed that requests logits."""
    return pb.Feed(token_ids=tokens, position=position, mark=mark, outputs=LOGITS)


async def opened(stream: ClientStream, name: str, **fields: Any) -> int:
    """Opens a session. Returns its handle."""
    answer = await stream.ask(name, open=plain(**fields))
    assert answer.HasField("opened"), answer
    return answer.opened.handle


async def fed(stream: ClientStream, name: str, *tokens: int, position: int | None = None, mark: bool = False) -> int:
    """Feeds a session. Returns its position."""
    answer = await stream.ask(name, feed=feed(*tokens, position=position, mark=mark))
    assert answer.HasField("fed"), answer
    return answer.position


def found_by_seeds(text: str) -> bool:
    """Returns whether one of the first 40 seeds has a violation that contains the text."""
    return any(text in violation for seed in range(40) for violation in run_seed(seed).violations)


def reason(answer: Any) -> str:
    """Returns the reason of an error response; for any other response, its kind."""
    if isinstance(answer, pb.StreamResponse):
        return answer.error.reason if answer.HasField("error") else str(answer.WhichOneof("response"))
    return str(getattr(answer, "reason", type(answer).__name__))


def _policy(action: pb.DisconnectAction.ValueType, seconds: float) -> pb.DisconnectPolicy:
    policy = pb.DisconnectPolicy(action=action)
    if seconds:
        policy.duration.CopyFrom(Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9)))
    return policy

"""Draws the actions of one seed's clients and the faults of its replicas and store, before anything runs.

A script is a list of actions, so that the script of a failing seed can be shortened: removing an action does not change
the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from carousel.v1 import inference_pb2 as pb
from simulation.arithmetic import VOCABULARY_SIZE
from simulation.bundles import LAZY, OF_NUMBERS, PROMPT, TRANSLATOR

NATURE = -1
"""The actor of faults. All other actors are clients."""


class Action(NamedTuple):
    """actor: a client's number, or NATURE. pause_s: seconds after the actor's previous action. args: arguments of
    `op`."""

    actor: int
    op: str
    pause_s: float
    args: dict[str, Any]

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        who = "nature" if self.actor == NATURE else f"c{self.actor}"
        return f"{who} {self.op}({arguments}) after {self.pause_s:.3f} s"


_CLIENT_OPS = {
    "open": 14,
    "feed": 30,
    "resend": 4,
    "step_batch": 10,
    "resend_batch": 3,
    "generate": 8,
    "regenerate": 2,
    "score": 2,
    "cancel": 3,
    "close": 4,
    "resume": 8,
    "leave": 3,
    "half_close": 2,
    "reading": 2,
    "settle": 6,
    "get": 2,
    "list": 1,
    "admin_close": 1,
    "snapshot": 2,
    "restore": 2,
    "fork": 1,
    "rewind": 4,
    "get_state": 1,
    "set_state": 1,
    "bad": 2,
    "contend": 3,
    "idle": 2,
}
_NATURE_OPS = {
    "outage": 5,
    "errors": 2,
    "stall": 2,
    "pause": 3,
    "cut": 3,
    "kill": 3,
    "drain": 1,
    "graph_errors": 1,
    "reload": 1,
    "calm": 3,
}


_LEASE_OPS = {"pause": 4, "cut": 4, "kill": 1, "outage": 1}
"""Faults that can cost a replica its lease. Here they last longer than a lease."""
_MOVING_OPS = {"resume": 5.0, "settle": 3.0, "idle": 2.0, "snapshot": 2.0, "rewind": 2.0, "fork": 2.0, "get_state": 2.0}
"""Factors for what clients do more often when replicas lose their leases, so that sessions change their replica."""


_LOSSES = ["empty", "evict"]
"""What the store loses: all records, or some."""


def draw(rng: random.Random, num_replicas: int = 2, models: Sequence[str] = OF_NUMBERS) -> list[Action]:
    """Returns a script of 30 to 90 actions. models: models whose sessions are opened; they include `OF_NUMBERS`."""
    num_clients = rng.choice([1, 2, 2, 3])
    num_nature = rng.choice([0, 0, 1, 2, 4])
    # Each script prefers some kinds of actions, so that these occur together more often.
    weights = {op: weight * rng.choice([0.3, 1.0, 1.0, 3.0]) for op, weight in _CLIENT_OPS.items()}
    is_of_leases = rng.random() < 0.25
    if is_of_leases:
        num_nature = rng.choice([2, 3, 4])
        weights = {op: weight * _MOVING_OPS.get(op, 1.0) for op, weight in weights.items()}
    actions = [
        Action(actor, "open", _pause(rng), _args(rng, "open") | {"k": k})
        for actor in range(num_clients)
        for k in range(3)
        if rng.random() < 0.8
    ]
    for _ in range(rng.randrange(30, 80)):
        op = rng.choices(list(weights), list(weights.values()))[0]
        actions.append(Action(rng.randrange(num_clients), op, _pause(rng), _args(rng, op)))
    nature = _LEASE_OPS if is_of_leases else _NATURE_OPS
    durations = [1.2, 2.0, 3.0] if is_of_leases else [0.05, 0.3, 1.0, 2.5]
    ops, shares = list(nature), list(nature.values())
    for _ in range(num_nature):
        op = rng.choices(ops, shares)[0]
        at = rng.randrange(len(actions) + 1)
        args = {"duration_s": rng.choice(durations), "replica": rng.randrange(2)}
        actions.insert(at, Action(NATURE, op, rng.random() * 0.5, args))
    if is_of_leases:
        actions = [_lasting(action, rng) for action in actions]
    if num_replicas > 2:
        actions = [_spread(action, rng, num_replicas) for action in actions]
    if rng.random() < 0.1:
        for _ in range(rng.choice([1, 2])):
            loss = Action(NATURE, rng.choice(_LOSSES), rng.random() * 0.5, {"duration_s": 0.0, "replica": 0})
            actions.insert(rng.randrange(len(actions) + 1), loss)
    others = [model for model in models if model not in OF_NUMBERS]
    if others:  # drawn last, so that scripts without them stay the same
        share, favoured = rng.choice([0.3, 0.6, 1.0]), [rng.choice(others)] * rng.choice([0, 4])
        actions = [_of_files(action, rng, [*others, *favoured], share) for action in actions]
    return actions


def _of_files(action: Action, rng: random.Random, models: Sequence[str], share: float) -> Action:
    """Replaces the model of an open by one with ONNX files. share: fraction of the opens for which this is done."""
    if action.op != "open" or rng.random() >= share:
        return action
    model = rng.choice(models)
    source = [rng.randrange(VOCABULARY_SIZE) for _ in range(rng.choice([1, 2, 2, 5]))]
    return action._replace(args=action.args | {"model": model, "source": source if model == TRANSLATOR else []})


def _spread(action: Action, rng: random.Random, num_replicas: int) -> Action:
    """Replaces the second of two replicas in an action by any replica but the first."""
    others = {name: rng.randrange(1, num_replicas) for name in ("slot", "replica") if action.args.get(name)}
    return action._replace(args=action.args | others)


def _lasting(action: Action, rng: random.Random) -> Action:
    """Changes an action so that sessions outlive their servers, and clients use either of two replicas."""
    args = dict(action.args)
    if action.op == "open":
        args["durability"] = rng.choice([pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT])
        args["action"] = pb.DISCONNECT_ACTION_KEEP
    if "slot" in args:
        args["slot"] = rng.randrange(2)
    return action._replace(args=args)


def _pause(rng: random.Random) -> float:
    drawn = rng.random()
    if drawn < 0.55:
        return 0.0
    return rng.random() * (0.01 if drawn < 0.85 else 0.1 if drawn < 0.97 else 0.8)


def _args(rng: random.Random, op: str) -> dict[str, Any]:
    args: dict[str, Any] = {"k": rng.randrange(3), "slot": int(rng.random() < 0.25)}
    if op == "open":
        args["model"] = rng.choice([LAZY, LAZY, PROMPT])
        args["durability"] = rng.choice(
            [
                pb.DURABILITY_UNSPECIFIED,
                pb.DURABILITY_NONE,
                pb.DURABILITY_CHECKPOINT,
                pb.DURABILITY_STRICT,
                pb.DURABILITY_STRICT,
            ]
        )
        args["action"] = rng.choice([pb.DISCONNECT_ACTION_FREE, pb.DISCONNECT_ACTION_HOLD, pb.DISCONNECT_ACTION_KEEP])
        args["duration_s"] = rng.choice([0.0, 0.5, 1.5])
        args["is_made"] = rng.random() < 0.15
        args["outputs"] = rng.random() < 0.2
        args["unattended"] = rng.random() < 0.2
        args["rude"] = rng.random() < 0.15
    elif op in ("feed", "step_batch"):
        count = rng.choice([1, 1, 1, 2, 3, 9])
        args["tokens"] = [rng.randrange(VOCABULARY_SIZE) for _ in range(count)]
        args["with_position"] = rng.random() < 0.5
        args["mark"] = rng.random() < 0.25
        args["kind"] = rng.choice([pb.OUTPUT_KIND_NEXT_TOKEN, pb.OUTPUT_KIND_LOGITS, pb.OUTPUT_KIND_NONE])
        args["size"] = rng.choice([1, 2, 3])
    elif op == "generate":
        args["max_tokens"] = rng.choice([1, 3, 8, 16])
        args["min_tokens"] = rng.choice([0, 0, 8, 16])
        args["seed"] = rng.choice([None, rng.randrange(100)])
        args["with_position"] = rng.random() < 0.5
    elif op == "score":
        args["targets"] = [[rng.randrange(VOCABULARY_SIZE) for _ in range(rng.randrange(1, 4))] for _ in range(2)]
    elif op in ("restore", "fork", "rewind", "set_state", "contend", "bad"):
        args["number"] = rng.randrange(100)
    elif op == "idle":
        args["duration_s"] = rng.choice([0.3, 1.2, 2.5])
    elif op == "reading":
        args["is_on"] = rng.random() < 0.5
    return args

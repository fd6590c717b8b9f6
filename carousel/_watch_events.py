"""Makes the events of a watch from messages. Pure."""

from __future__ import annotations

from carousel import _answers
from carousel._ports import ports
from carousel._tensors import vectors
from carousel.v1 import inference_pb2 as pb
from carousel.values import Port
from carousel.watching import WatchBegun, WatchChanged, WatchClosed, WatchEvent, WatchFed, WatchGenerated


class WatchEvents:
    """Makes the events of one watch. It remembers the model's outputs from the first event."""

    def __init__(self) -> None:
        self._outputs: tuple[Port, ...] = ()

    def event(self, message: pb.WatchResponse) -> WatchEvent:
        """Makes the event of a message."""
        name, at = message.session_id, message.position
        match message.WhichOneof("event"):
            case "watching":
                return self._begun(name, at, message.watching)
            case "fed":
                fed = message.fed
                step = _answers.step(fed.fed, at, self._outputs) if fed.HasField("fed") else None
                return WatchFed(name, at, _answers.tokens(fed.tokens), tuple(vectors(fed.features)), step)
            case "generated":
                made = message.generated
                reason = _answers.finish_reason(made.finish_reason)
                found = _answers.hypotheses(made.hypotheses)
                return WatchGenerated(
                    name, at, _answers.tokens(made.tokens), tuple(vectors(made.values)), reason, found
                )
            case "changed":
                return WatchChanged(name, at, _answers.session_change(message.changed.change))
            case "closed":
                return WatchClosed(name, at, _answers.close_reason(message.closed.reason))
            case _:
                return WatchEvent(name, at)

    def _begun(self, name: str, position: int, opened: pb.Opened) -> WatchBegun:
        self._outputs = ports(opened.outputs)
        return WatchBegun(
            name,
            position,
            opened.model,
            opened.version,
            opened.variant,
            _answers.durability(opened.durability),
            ports(opened.inputs),
            self._outputs,
            opened.feature_size,
        )

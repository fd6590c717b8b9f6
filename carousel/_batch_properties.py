"""The attributes and methods of blocking and asyncio batches that do not wait. They post requests to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Generic

from carousel import _arguments, _requests
from carousel._batch import BatchProtocol, member_at
from carousel._home import Unpicklable
from carousel._ports import Parts
from carousel._resumable import AnyPoster
from carousel._tensors import Features
from carousel.v1 import inference_pb2 as pb


class BatchProperties(Unpicklable, Generic[AnyPoster]):
    """The methods of blocking and asyncio batches that do not wait."""

    _protocol: BatchProtocol
    _stream: AnyPoster
    _turn: AbstractContextManager[None]

    def __len__(self) -> int:
        return len(self._protocol.recovery.members)

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each session, by place, after the steps in flight."""
        return tuple(member.position for member in self._protocol.recovery.members)

    @property
    def session_ids(self) -> tuple[str, ...]:
        """The id of each session, by place."""
        return tuple(member.id for member in self._protocol.recovery.members)

    def send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        features: Features | Parts | None = None,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        end: bool | Sequence[bool] = False,
    ) -> None:
        """Sends a step and does not wait for its answer: see `step` and `receive`. Several steps may be in flight."""
        with self._turn:
            self._send(tokens, features, places, top_k=top_k, logits=logits, outputs=outputs, end=end)

    def _send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None,
        features: Features | Parts | None,
        places: Sequence[int] | None,
        *,
        top_k: int | None,
        logits: bool,
        outputs: bool,
        end: bool | Sequence[bool],
    ) -> None:
        protocol, recovery = self._protocol, self._protocol.recovery
        protocol.check_open()
        if places is None:
            places = range(len(recovery.members))
            if protocol.num_closed:
                places = [place for place in places if not recovery.members[place].is_closed]
        members = [member_at(recovery.members, place) for place in _arguments.iterable(places, "places", "places")]
        if end is True:
            end = [True] * len(members)
        message = _requests.step_batch_message(
            [member.handle for member in members],
            tokens,
            [member.position for member in members],
            features=_requests.vectors(
                features, members[0].inputs if members else (), "step_batch.features", is_last=end
            ),
            feature_size=members[0].feature_size if members else 0,
            top_k=top_k,
            logits=logits,
            outputs=outputs,
        )
        for question in recovery.questions():
            self._stream.post(question)
        self._post(protocol.step_batch(message, places))

    def _check_none_in_flight(self) -> None:
        self._protocol.check_open()
        if self._protocol.num_in_flight:
            raise LookupError("other steps are in flight: `receive` their answers first")

    def _send_openings(self, openings: Sequence[tuple[pb.Open, str]]) -> list[int]:
        """Sends the openings. Returns the request numbers."""
        requests = [self._protocol.open(message, session_id) for message, session_id in openings]
        for request in requests:
            self._post(request)
        return [request.request_id for request in requests]

    def _post(self, request: pb.StreamRequest) -> None:
        if self._protocol.recovery.register(request):
            self._stream.post(request)

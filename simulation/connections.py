"""A client's sessions and its streams: one stream to each replica, opened when needed. Handles the streams' events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from carousel.v1 import inference_pb2 as pb
from simulation.checks import Journal, Stamp
from simulation.streams import ClientStream, Sent
from simulation.system import Replica
from simulation.views import View

_NUM_SESSIONS = 3
_SETTLE_S = 1.5


class Connections:
    """The sessions and streams of one client. stamps: returns the store's records; delay: draws the seconds that a
    message is on its way."""

    def __init__(
        self,
        number: int,
        replicas: list[Replica],
        journal: Journal,
        delay: Callable[[], float],
        stamps: Callable[[Replica, list[str]], Stamp],
    ) -> None:
        self.name = f"c{number}"
        self.journal = journal
        self.replicas = replicas
        self.views = [self.new_view(f"{self.name}s{k}", "") for k in range(_NUM_SESSIONS)]
        self.streams: list[ClientStream | None] = [None] * len(replicas)
        self.all_streams: list[ClientStream] = []
        self._delay = delay
        self._stamps_of = stamps

    def new_view(self, name: str, model: str) -> View:
        """Returns a view of a session that the client may open."""
        return View(name, model, self.journal, self.replicas)

    async def settle(self, view: View) -> bool:
        """Waits until all requests about a session are answered or lost. Returns whether they are."""
        deadline = self.journal.now() + _SETTLE_S
        for sent in [*view.on_their_way, *(entry.sent for entry in view.queue)]:
            await sent.wait(max(0.0, deadline - self.journal.now()))
        view.settle()
        view.on_their_way = [sent for sent in view.on_their_way if not (sent.is_done or sent.is_lost)]
        return not (view.queue or view.on_their_way)

    def stream(self, slot: int) -> ClientStream | None:
        """Returns the stream to a replica, and opens it if needed. None: the replica is down."""
        stream = self.streams[slot]
        if stream is not None and not (stream.is_over or stream.has_half_closed or stream.has_left):
            return stream
        replica = self.replicas[slot]
        if not replica.is_up:
            return None
        name = f"{self.name}.{len(self.all_streams)}@{replica.life.name}"
        stream = ClientStream(
            name, replica, self.journal, self._delay, listener=self, stamp=partial(self._stamps, replica)
        )
        self.streams[slot] = stream
        self.all_streams.append(stream)
        return stream

    # Events of streams.

    def answered(self, sent: Sent) -> None:
        """See `Listener`."""
        for view in sent.subject or ():
            view.settle()
        if sent.kind == "open" and not sent.request.session_id and sent.answer.HasField("opened"):
            for view in sent.subject or ():
                view.name = sent.answer.session_id

    def progressed(self, sent: Sent, response: pb.StreamResponse, stamp: Stamp) -> None:
        """See `Listener`."""
        for view in sent.subject or ():
            for entry in view.queue:
                if entry.sent is sent:
                    view.part_stored(entry, response.position, stamp)

    def noticed(self, stream: ClientStream, response: pb.StreamResponse) -> None:
        """See `Listener`."""
        for view in self.views:
            if response.HasField("closed") and view.name == response.session_id and view.stream is stream:
                view.closed(stream, response)

    def ended(self, stream: ClientStream, unanswered: list[Sent]) -> None:
        """See `Listener`."""
        for view in self.views:
            if view.stream is stream:
                view.lost()
                view.detach()

    def _stamps(self, replica: Replica, response: pb.StreamResponse) -> Stamp:
        if response.HasField("error") and response.error.reason != "CANCELLED":
            return {}
        names = [view.name for view in self.views if view.is_strict and view.name]
        return self._stamps_of(replica, [name for name in names if response.session_id in ("", name)])

"""A client that does what the script says, and knows what its sessions should be.

It keeps one stream to each replica, and opens a new one when it needs it. Ids are its own, but for those that it
contends for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from carousel.v1 import inference_pb2 as pb
from simulation.admin import Admin
from simulation.checks import Journal, Stamp
from simulation.entries import Entry, Presence
from simulation.script import Action
from simulation.streams import ClientStream, Sent
from simulation.system import Replica
from simulation.views import View
from simulation.worlds import Choosing

_NUM_SESSIONS = 3
_SETTLE_S = 1.5


class Client:
    """stamp: what the store has of a session; delay: draws how long messages are on their way."""

    def __init__(
        self,
        number: int,
        replicas: list[Replica],
        journal: Journal,
        delay: Callable[[], float],
        stamp: Callable[[str], Any],
    ) -> None:
        self.name = f"c{number}"
        self.journal = journal
        self.replicas = replicas
        self.views = [self.new_view(f"{self.name}s{k}", "") for k in range(_NUM_SESSIONS)]
        self.streams: list[ClientStream | None] = [None, None]
        self.all_streams: list[ClientStream] = []
        self._delay = delay
        self._stamp = stamp
        self._num_views = 0
        self._last_batch: tuple[ClientStream, pb.StepBatch] | None = None
        self._admin = Admin(self)

    def new_view(self, name: str, model: str) -> View:
        """A session that it may have."""
        return View(name, model, self.journal, self.replicas)

    async def perform(self, action: Action) -> None:
        """Does one action of the script."""
        args = dict(action.args)
        view = self.views[args.pop("k") % len(self.views)]
        own = getattr(self, f"_{action.op}", None)
        if own is not None:
            own(view, **args)
        elif action.op == "settle":
            await self.settle(view)
        elif action.op == "idle":
            await asyncio.sleep(args["duration_s"])
        else:
            await self._admin.perform(action.op, view, **args)

    async def settle(self, view: View) -> bool:
        """Waits until all that was asked about a session is answered. Returns whether it is."""
        deadline = self.journal.now() + _SETTLE_S
        for entry in list(view.queue):
            await entry.sent.wait(max(0.0, deadline - self.journal.now()))
        view.settle()
        return not view.queue

    def stream(self, slot: int) -> ClientStream | None:
        """The stream to a replica, a new one if need be; None: the replica is down."""
        stream = self.streams[slot]
        if stream is not None and not (stream.is_over or stream.has_half_closed or stream.has_left):
            return stream
        replica = self.replicas[slot]
        if not replica.is_up:
            return None
        name = f"{self.name}.{len(self.all_streams)}@{replica.life.name}"
        stream = ClientStream(name, replica, self.journal, self._delay, self, self._stamps)
        self.streams[slot] = stream
        self.all_streams.append(stream)
        return stream

    # what streams tell

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

    def _stamps(self, response: pb.StreamResponse) -> Stamp:
        if response.HasField("error") and response.error.reason != "CANCELLED":
            return {}
        return {
            view.name: self._stamp(view.name)
            for view in self.views
            if view.is_strict and view.name and (not response.session_id or view.name == response.session_id)
        }

    # what the script asks for; a method `_op` for each op that waits for nothing

    def _open(
        self,
        view: View,
        *,
        slot: int,
        model: str,
        durability: int,
        action: int,
        duration_s: float,
        is_made: bool,
        outputs: bool,
        unattended: bool,
        rude: bool,
    ) -> None:
        view.look()
        if view.is_usable or (view.presence is Presence.PRESENT and not rude) or view.is_opening:
            return
        if view.presence is Presence.UNKNOWN or not view.is_exclusive:  # there may be another session of that id
            self._num_views += 1
            at = self.views.index(view)
            view = self.views[at] = self.new_view(f"{self.name}n{self._num_views}", "")
        stream = self.stream(slot)
        if stream is None:
            return
        message = pb.Open(model=model, durability=durability, unattended=unattended)  # type: ignore[arg-type]  # an enum
        if action != pb.DISCONNECT_ACTION_FREE:
            message.on_disconnect.action = action  # type: ignore[assignment]  # as above
            if duration_s:
                message.on_disconnect.duration.CopyFrom(_duration(duration_s))
        if outputs:
            message.outputs.kind = pb.OUTPUT_KIND_LOGITS
        is_made = is_made and view.presence is Presence.ABSENT
        sent = stream.send("" if is_made else view.name, open=message)
        if is_made:
            view.name = ""
        entry = Entry(sent, before=view.presence, opening=(model, action, duration_s or 1.5))
        self._ask(view, entry)
        view.stream, view.handle = stream, 0

    def _resume(self, view: View, *, slot: int) -> None:
        if not view.name or view.is_opening or (view.presence is Presence.ABSENT and view.floor is None and slot):
            return
        stream = self.stream(slot)
        if stream is None:
            return
        view.lost()
        before = view.presence
        if view.action == pb.DISCONNECT_ACTION_FREE and view.stream is not stream:
            before = Presence.UNKNOWN  # it may end with its stream before it is taken from there
        entry = Entry(stream.send(view.name, open=pb.Open(resume=pb.Resume())), before=before, is_resume=True)
        self._ask(view, entry)
        view.stream, view.handle = stream, 0

    def _feed(
        self, view: View, *, slot: int, tokens: list[int], with_position: bool, mark: bool, kind: int, size: int
    ) -> None:
        start = self._start(view) if with_position else None
        if not self._is_open(view) or (with_position and start is None):
            return
        message = pb.Feed(token_ids=tokens, position=start, mark=mark)
        message.outputs.kind = kind  # type: ignore[assignment]  # an enum
        self._send(view, Entry(NOT_SENT, tokens=tokens, start=start, mark=mark, kind=kind), feed=message)

    def _resend(self, view: View, *, slot: int) -> None:
        last = view.last
        if not self._is_open(view) or last is None or last.sent.kind != "feed" or last.start is None:
            return
        again = Entry(NOT_SENT, tokens=last.tokens, start=last.start, mark=last.mark, kind=last.kind)
        self._send(view, again, feed=last.sent.request.feed)

    def _generate(
        self, view: View, *, slot: int, max_tokens: int, min_tokens: int, seed: int | None, with_position: bool
    ) -> None:
        start = self._start(view) if with_position else None
        if not self._is_open(view) or (with_position and start is None):
            return
        choosing = Choosing(max_tokens, min(min_tokens, max_tokens), seed)
        message = pb.Generate(position=start)
        message.decoding.max_tokens = max_tokens
        message.decoding.min_tokens = choosing.min_tokens
        if seed is not None:
            message.decoding.sampling.seed = seed
        self._send(view, Entry(NOT_SENT, start=start, choosing=choosing), generate=message)

    def _regenerate(self, view: View, *, slot: int) -> None:
        last = view.last
        if not self._is_open(view) or last is None or last.choosing is None or last.start is None or view.queue:
            return
        message = pb.Generate.FromString(last.sent.request.generate.SerializeToString())
        received = max((part.position for part in last.sent.responses if part.HasField("generated")), default=0)
        received = max(received, last.start + last.skipped)
        message.received_position = received
        again = Entry(NOT_SENT, start=last.start, choosing=last.choosing, skipped=received - last.start)
        self._send(view, again, generate=message)

    def _score(self, view: View, *, slot: int, targets: list[list[int]]) -> None:
        if self._is_open(view):
            message = pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=target)) for target in targets])
            self._send(view, Entry(NOT_SENT, targets=targets), score=message)

    def _step_batch(
        self, view: View, *, slot: int, tokens: list[int], with_position: bool, mark: bool, kind: int, size: int
    ) -> None:
        if not view.is_usable or view.stream is None:
            return
        some = [view]
        for other in self.views:
            if other.is_usable and other.stream is view.stream and other.model == view.model and other is not view:
                some.append(other)
        some = [one for one in some if one.handle][:size]
        starts = [self._start(one) for one in some]
        if not some or (with_position and None in starts):
            return
        kind = pb.OUTPUT_KIND_NONE if kind == pb.OUTPUT_KIND_NONE else pb.OUTPUT_KIND_NEXT_TOKEN
        message = pb.StepBatch(handles=[one.handle for one in some])
        each = [tokens[:1] if len(tokens) < 3 else tokens[:2] for _ in some]
        if len(tokens) >= 3:  # a longer feed: more than one token each
            message.counts.extend(len(one) for one in each)
        message.token_ids.extend(token for one in each for token in one)
        if with_position:
            message.positions.extend(start for start in starts if start is not None)
        message.outputs.kind = kind  # type: ignore[assignment]  # an enum
        self._send_batch(view.stream, some, message, each, list(starts) if with_position else [None] * len(some))

    def _resend_batch(self, view: View, *, slot: int) -> None:
        if self._last_batch is None or not self._last_batch[1].positions:
            return
        stream, message = self._last_batch
        by_handle = {one.handle: one for one in self.views if one.stream is stream and one.is_usable}
        some = [by_handle.get(handle) for handle in message.handles]
        if stream.is_over or stream.has_half_closed or None in some:
            return
        counts = list(message.counts) or [1] * len(some)
        tokens, each = list(message.token_ids), []
        for count in counts:
            each.append(tokens[:count])
            del tokens[:count]
        views = [one for one in some if one is not None]
        self._send_batch(stream, views, message, each, list(message.positions))

    def _cancel(self, view: View, *, slot: int) -> None:
        if self._is_open(view):
            view.num_cancels += 1
            self._send(view, Entry(NOT_SENT), cancel=pb.Cancel())

    def _close(self, view: View, *, slot: int) -> None:
        if self._is_open(view):
            view.num_closings += 1
            self._send(view, Entry(NOT_SENT), close=pb.Close())

    def _leave(self, view: View, *, slot: int) -> None:
        stream = self.streams[slot]
        if stream is not None:
            stream.leave()

    def _half_close(self, view: View, *, slot: int) -> None:
        stream = self.streams[slot]
        if stream is not None and not stream.is_over:
            stream.half_close()

    def _reading(self, view: View, *, slot: int, is_on: bool) -> None:
        stream = self.streams[slot]
        if stream is not None:
            stream.set_reading(is_on)

    def _bad(self, view: View, *, slot: int, number: int) -> None:
        """A request that must be refused, and changes nothing."""
        stream = self.stream(slot)
        if stream is None:
            return
        strange = f"{self.name}x"
        bad: list[tuple[str, dict[str, Any]]] = [
            (strange, {"open": pb.Open(model="no-such-model", durability=pb.DURABILITY_STRICT)}),
            ("no/such id", {"open": pb.Open(model="lazy")}),
            (
                strange,
                {"open": pb.Open(model="lazy", outputs=pb.OutputSpec(top_k=99), durability=pb.DURABILITY_STRICT)},
            ),
            (strange, {"feed": pb.Feed(token_ids=[1])}),
            (strange, {"open": pb.Open(resume=pb.Resume(), model="lazy")}),
            ("", {"step_batch": pb.StepBatch(handles=[99], token_ids=[1])}),
            ("", {"step_batch": pb.StepBatch(handles=[1, 1], token_ids=[1, 1])}),
            ("", {}),
        ]
        if view.is_usable and view.stream is stream:
            bad += [(view.name, {"feed": pb.Feed(token_ids=[99])}), (view.name, {"feed": pb.Feed()})]
        session_id, request = bad[number % len(bad)]
        stream.send(session_id, **request)

    def _contend(self, view: View, *, slot: int, number: int) -> None:
        """Uses an id that others use, too."""
        stream = self.stream(slot)
        if stream is None:
            return
        name = f"shared{number % 2}"
        request: dict[str, Any] = [
            {"open": pb.Open(model="lazy", durability=pb.DURABILITY_CHECKPOINT)},
            {"open": pb.Open(model="lazy")},
            {"open": pb.Open(resume=pb.Resume())},
            {"feed": pb.Feed(token_ids=[1, 2])},
            {"generate": pb.Generate()},
            {"close": pb.Close()},
        ][number % 6]
        stream.send(name, **request)

    # how requests are sent

    def _is_open(self, view: View) -> bool:
        stream = view.stream
        is_open = stream is not None and not (stream.is_over or stream.has_half_closed or stream.has_left)
        return is_open and bool(view.name)

    def _start(self, view: View) -> int | None:
        """Where the next request of a session begins, if that is known."""
        positions = view.worlds.positions
        if len(positions) != 1 or view.is_opening:
            return None
        position = positions[0]
        for entry in view.queue:
            if entry.choosing is not None:
                return None
            position += len(entry.tokens)
        return position

    def _send(self, view: View, entry: Entry, **request: Any) -> None:
        assert view.stream is not None  # noqa: S101  # the callers have looked
        entry.sent = view.stream.send(view.name, **request)
        if entry.sent.kind in ("feed", "generate"):
            view.last = entry
        self._ask(view, entry)

    def _send_batch(
        self,
        stream: ClientStream,
        views: list[View],
        message: pb.StepBatch,
        each: list[list[int]],
        starts: list[int | None],
    ) -> None:
        sent = stream.send(step_batch=message)
        self._last_batch = (stream, message)
        for place, (view, tokens, start) in enumerate(zip(views, each, starts, strict=True)):
            entry = Entry(sent, tokens=tokens, start=start, kind=message.outputs.kind, place=place)
            entry.num_cancels = view.num_cancels
            view.queue.append(entry)
            view.last = None
        sent.subject = views

    @staticmethod
    def _ask(view: View, entry: Entry) -> None:
        entry.num_cancels = view.num_cancels
        entry.sent.subject = [view]
        view.queue.append(entry)


NOT_SENT: Any = None
"""In place of what an entry was sent as, until it is."""


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))

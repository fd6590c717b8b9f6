"""Sends the requests of one client's streams that a script asks for. Each op has a method, which does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.duration_pb2 import Duration

from carousel.v1 import inference_pb2 as pb
from simulation import messages
from simulation.bundles import LISTENER
from simulation.connections import Connections
from simulation.entries import Entry, Presence
from simulation.streams import ClientStream, Sent
from simulation.views import View
from simulation.worlds import Choosing


class Requests:
    """Sends requests. Each method does nothing if its request is not possible now, because the session is not open or
    its position is not known."""

    def __init__(self, client: Connections) -> None:
        self._client = client
        self._num_views = 0
        self._last_batch: tuple[ClientStream, pb.StepBatch, list[list[int]]] | None = None
        self._batches: dict[tuple[ClientStream, bytes], tuple[Sent, ...]] = {}

    def open(
        self,
        view: View,
        *,
        slot: int,
        model: str,
        durability: pb.Durability.ValueType,
        action: pb.DisconnectAction.ValueType,
        duration_s: float,
        is_made: bool,
        outputs: bool,
        unattended: bool,
        rude: bool,
        source: Sequence[int] = (),
    ) -> None:
        """Opens a new session under its own id, or under one that the server makes."""
        view.look()
        if view.is_usable or (view.presence is Presence.PRESENT and not rude) or view.is_opening:
            return
        if view.presence is Presence.UNKNOWN or not view.is_exclusive:  # another session may have this id
            self._num_views += 1
            at = self._client.views.index(view)
            view = self._client.views[at] = self._client.new_view(f"{self._client.name}n{self._num_views}", "")
        stream = self._client.stream(slot)
        if stream is None:
            return
        message = messages.opening(model, source, durability=durability, unattended=unattended)
        if action != pb.DISCONNECT_ACTION_FREE:
            message.on_disconnect.action = action
            if duration_s:
                message.on_disconnect.duration.CopyFrom(_duration(duration_s))
        if outputs:
            message.outputs.kind = messages.kind_of(model, pb.OUTPUT_KIND_LOGITS)  # type: ignore[assignment]  # an enum
        is_made = is_made and view.presence is Presence.ABSENT
        sent = stream.send("" if is_made else view.name, open=message)
        if is_made:
            view.name = ""
        before = Presence.UNKNOWN if view.is_closing and view.presence is Presence.PRESENT else view.presence
        entry = Entry(sent, before=before, opening=(model, action, duration_s or 1.5), source=tuple(source))
        entry.is_recording = self._is_recording(view)
        self._ask(view, entry)
        view.stream, view.handle = stream, 0

    def resume(self, view: View, *, slot: int) -> None:
        """Resumes a session, on the same or on another replica."""
        if not view.name or view.is_opening or (view.presence is Presence.ABSENT and view.floor is None and slot):
            return
        stream = self._client.stream(slot)
        if stream is None:
            return
        closes = [entry.sent for entry in view.queue if entry.is_close and entry.sent.stream is stream]
        view.lost()
        before = view.presence
        if view.action == pb.DISCONNECT_ACTION_FREE and view.stream is not stream:
            before = Presence.UNKNOWN  # the session may end with its stream before the new stream takes it
        sent = stream.send(view.name, open=pb.Open(resume=pb.Resume()))
        view.wants.append(sent)
        view.is_resuming = True
        entry = Entry(sent, before=before, is_resume=True, closes=closes)
        entry.is_recording = self._is_recording(view)
        self._ask(view, entry)
        view.stream, view.handle = stream, 0

    def feed(
        self, view: View, *, slot: int, tokens: list[int], with_position: bool, mark: bool, kind: int, size: int
    ) -> None:
        """Feeds a session."""
        start = self._start(view) if with_position else None
        if not self._is_open(view) or (with_position and start is None):
            return
        kind = messages.kind_of(view.model, kind)
        message = messages.feed(view.model, tokens, kind, position=start, mark=mark)
        self._send(view, Entry(NOT_SENT, tokens=tokens, start=start, mark=mark, kind=kind), feed=message)

    def resend(self, view: View, *, slot: int) -> None:
        """Sends again, unchanged and in order, all feeds and generations that were not stored. If there are none, sends
        the session's last feed again."""
        if not self._is_open(view):
            return
        last, unstored, view.unstored = view.last, view.unstored, []
        is_feed = last is not None and last.sent.kind == "feed" and last.start is not None
        for entry in unstored or ([last] if last is not None and is_feed else []):
            if entry.choosing is not None:
                self._generate_again(view, entry, is_again=True)
            else:
                again = replace(entry, sent=NOT_SENT, is_again=entry.is_again or bool(unstored))
                self._send(view, again, feed=entry.sent.request.feed)

    def generate(
        self, view: View, *, slot: int, max_tokens: int, min_tokens: int, seed: int | None, with_position: bool
    ) -> None:
        """Starts a generation."""
        start = self._start(view) if with_position else None
        if not self._is_open(view) or view.model == LISTENER or (with_position and start is None):
            return
        choosing = Choosing(max_tokens, min(min_tokens, max_tokens), seed)
        message = pb.Generate(position=start)
        message.decoding.max_tokens = max_tokens
        message.decoding.min_tokens = choosing.min_tokens
        if seed is not None:
            message.decoding.sampling.seed = seed
        self._send(view, Entry(NOT_SENT, start=start, choosing=choosing), generate=message)

    def regenerate(self, view: View, *, slot: int) -> None:
        """Asks again for the last generation of a session, from the position up to which it was received."""
        last = view.last
        if not self._is_open(view) or last is None or last.choosing is None or last.start is None or view.queue:
            return
        self._generate_again(view, last, is_again=last.is_again)

    def _generate_again(self, view: View, last: Entry, *, is_again: bool) -> None:
        message = pb.Generate.FromString(last.sent.request.generate.SerializeToString())
        received = max((part.position for part in last.sent.responses if part.HasField("generated")), default=0)
        start = message.position
        message.received_position = max(received, start + last.skipped)
        skipped = message.received_position - start
        again = replace(last, sent=NOT_SENT, skipped=skipped, is_again=is_again)
        self._send(view, again, generate=message)

    def score(self, view: View, *, slot: int, targets: list[list[int]]) -> None:
        """Scores targets."""
        if self._is_open(view) and view.model != LISTENER:
            message = pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=target)) for target in targets])
            self._send(view, Entry(NOT_SENT, targets=targets), score=message)

    def step_batch(
        self, view: View, *, slot: int, tokens: list[int], with_position: bool, mark: bool, kind: int, size: int
    ) -> None:
        """Steps several sessions with one message."""
        if not view.is_usable or view.stream is None or not self._is_open(view):
            return
        some = [view]
        for other in self._client.views:
            if other.is_usable and other.stream is view.stream and other.model == view.model and other is not view:
                some.append(other)
        some = [one for one in some if one.handle][:size]
        starts = [self._start(one) for one in some]
        if not some or (with_position and None in starts):
            return
        kind = pb.OUTPUT_KIND_NONE if kind == pb.OUTPUT_KIND_NONE else pb.OUTPUT_KIND_NEXT_TOKEN
        has_several = len(tokens) >= 3 and view.model != LISTENER  # a longer feed: more than one token each
        each = [tokens[: 2 if has_several else 1] for _ in some]
        message = messages.step_batch(
            view.model, [one.handle for one in some], each, messages.kind_of(view.model, kind)
        )
        if with_position:
            message.positions.extend(start for start in starts if start is not None)
        self._send_batch(view.stream, some, message, each, list(starts) if with_position else [None] * len(some))

    def resend_batch(self, view: View, *, slot: int) -> None:
        """Sends the last step batch again, unchanged."""
        if self._last_batch is None or not self._last_batch[1].positions:
            return
        stream, message, each = self._last_batch
        by_handle = {one.handle: one for one in self._client.views if one.stream is stream and one.is_usable}
        some = [by_handle.get(handle) for handle in message.handles]
        if stream.is_over or stream.has_half_closed or None in some:
            return
        views = [one for one in some if one is not None]
        self._send_batch(stream, views, message, each, list(message.positions))

    def cancel(self, view: View, *, slot: int) -> None:
        """Cancels the work of a session."""
        if self._is_open(view):
            view.num_cancels += 1
            self._send(view, Entry(NOT_SENT), cancel=pb.Cancel())

    def close(self, view: View, *, slot: int) -> None:
        """Closes a session."""
        if self._is_open(view):
            self._send(view, Entry(NOT_SENT), close=pb.Close())

    def leave(self, view: View, *, slot: int) -> None:
        """Disconnects a stream."""
        stream = self._client.streams[slot]
        if stream is not None:
            stream.leave()

    def half_close(self, view: View, *, slot: int) -> None:
        """Half-closes a stream: the client sends no more requests."""
        stream = self._client.streams[slot]
        if stream is not None and not stream.is_over:
            stream.half_close()

    def reading(self, view: View, *, slot: int, is_on: bool) -> None:
        """Stops or continues reading a stream."""
        stream = self._client.streams[slot]
        if stream is not None:
            stream.set_reading(is_on)

    def bad(self, view: View, *, slot: int, number: int) -> None:
        """Sends a request that must be refused and must change nothing."""
        stream = self._client.stream(slot)
        if stream is None:
            return
        bad = messages.stray(f"{self._client.name}x")
        if view.is_usable and view.stream is stream:
            bad += [(view.name, request) for request in messages.wrong(view.model)]
        session_id, request = bad[number % len(bad)]
        stream.send(session_id, **request)

    def contend(self, view: View, *, slot: int, number: int) -> None:
        """Uses an id that other clients also use."""
        stream = self._client.stream(slot)
        if stream is None:
            return
        name = f"shared{number % 2}"
        requests: list[dict[str, Any]] = [
            {"open": pb.Open(model="lazy", durability=pb.DURABILITY_CHECKPOINT)},
            {"open": pb.Open(model="lazy")},
            {"open": pb.Open(resume=pb.Resume())},
            {"feed": pb.Feed(token_ids=[1, 2])},
            {"generate": pb.Generate()},
            {"close": pb.Close()},
        ]
        stream.send(name, **requests[number % len(requests)])

    # How requests are sent.

    def _is_open(self, view: View) -> bool:
        stream = view.stream
        is_open = stream is not None and not (stream.is_over or stream.has_half_closed or stream.has_left)
        return is_open and bool(view.name)

    def _is_recording(self, view: View) -> bool:
        return any(replica.is_recording(view.name) for replica in self._client.replicas)

    def _start(self, view: View) -> int | None:
        """Returns the position at which the session's next request begins; None if it is not known."""
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
        assert view.stream is not None  # noqa: S101  # callers have checked `_is_open`
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
        self._last_batch = (stream, message, each)
        key = (stream, message.SerializeToString(deterministic=True))
        self._batches[key] = (*(earlier := self._batches.get(key, ())), sent)
        for place, (view, tokens, start) in enumerate(zip(views, each, starts, strict=True)):
            entry = Entry(sent, tokens=tokens, start=start, kind=message.outputs.kind, place=place, earlier=earlier)
            entry.num_cancels = view.num_cancels
            view.queue.append(entry)
            view.newest = entry
            view.last = None
        sent.subject = views

    @staticmethod
    def _ask(view: View, entry: Entry) -> None:
        entry.num_cancels = view.num_cancels
        entry.sent.subject = [view]
        view.queue.append(entry)
        view.newest = entry


NOT_SENT: Any = None
"""Placeholder for `Entry.sent` until the request is sent."""


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))

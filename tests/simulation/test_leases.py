"""Servers that lose their lease: no old copy of a session answers, and no server loses a session that it still owns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextvars import Context
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from service.sessions.stores.base import Beat, StoreError, Write, Written
from simulation.store import SimulatedStore
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, NONE, RESUME, STRICT, fed, feed, keep, opened, play, reason

_PAST_LEASE_S = 1.5
GET = sessions_pb2.SessionsGetRequest(session_id="a")


async def take_over(world: World) -> Any:
    """Resumes session `a` on the second replica, and feeds it up to position 6. Returns its stream."""
    await asyncio.sleep(_PAST_LEASE_S)
    stream = world.connect(1)
    resumed = await stream.ask("a", open=RESUME)
    assert (reason(resumed), resumed.position) == ("opened", 2)
    await fed(stream, "a", 5, 5, 5, 5)
    return stream


async def begin(world: World, durability: pb.Durability.ValueType) -> Any:
    """Opens session `a` on the first replica, and feeds it to position 2, with a mark at 1. All of it is stored.
    Returns the stream."""
    stream = world.connect(0)
    await opened(stream, "a", durability=durability, on_disconnect=keep(20.0))
    await fed(stream, "a", 5, mark=True)
    await fed(stream, "a", 6)
    await asyncio.sleep(0.5)
    return stream


@pytest.mark.parametrize("durability", [STRICT, CHECKPOINT])
@pytest.mark.parametrize("how", ["pause", "cut"])
def test_a_server_that_lost_its_lease_answers_nothing_from_its_old_copy(
    how: str, durability: pb.Durability.ValueType
) -> None:
    """Requests that are sent before the old server knows of the loss get an error, and the stream gets one notice:
    MOVED."""

    async def act(world: World) -> None:
        old = await begin(world, durability)
        first = world.replicas[0]
        if how == "pause":
            world.loop.pause(first.life, 3.0)
        else:
            world.faults.cuts[first.name] = world.shared.clock() + 3.0
        await take_over(world)
        sent = old.send("a", feed=feed(7, position=2))
        calls = [world.call("Sessions.Get", GET)]
        if how == "cut":
            assert await sent.wait(5.0)
            assert reason(sent.answer) == "STORE_UNAVAILABLE", "it can neither ask the store nor speak for the session"
            assert reason(await calls.pop()) == "STORE_UNAVAILABLE"
            await asyncio.sleep(3.0)
            calls.append(world.call("Sessions.Get", GET))
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(3.0)
        assert await sent.wait(5.0)
        assert reason(sent.answer) in ("SESSION_MOVED", "SESSION_NOT_FOUND", "STORE_UNAVAILABLE")
        assert reason(await tasks[0]) in ("SESSION_MOVED", "SESSION_NOT_FOUND")
        assert [notice.closed.reason for notice in old.notices if notice.HasField("closed")] == [pb.CLOSE_REASON_MOVED]
        resumed = await world.connect(0).ask("a", open=RESUME)
        assert (reason(resumed), resumed.position) == ("opened", 6)

    play(act, idle_timeout_s=30.0, does_finish=False)


@pytest.mark.parametrize("call", ["Snapshot", "Fork", "Rewind", "GetState", "Close"])
def test_requests_to_a_paused_server_apply_to_the_session_where_it_is_now(call: str) -> None:
    requests: dict[str, Any] = {
        "Snapshot": sessions_pb2.SessionsSnapshotRequest(session_id="a"),
        "Fork": sessions_pb2.SessionsForkRequest(session_id="a", fork_session_id="copy"),
        "Rewind": sessions_pb2.SessionsRewindRequest(session_id="a", position=1),
        "GetState": sessions_pb2.SessionsGetStateRequest(session_id="a"),
        "Close": sessions_pb2.SessionsCloseRequest(session_id="a"),
    }

    async def act(world: World) -> None:
        await begin(world, STRICT)
        world.loop.pause(world.replicas[0].life, 3.0)
        new = await take_over(world)
        answer = await world.call(f"Sessions.{call}", requests[call])
        if call == "Close":
            assert answer.position == 6
            assert [notice.closed.reason for notice in new.notices] == [pb.CLOSE_REASON_MOVED]
            assert reason(await world.connect(1).ask("a", open=RESUME)) == "SESSION_NOT_FOUND"
        elif call == "Rewind":
            assert answer.session.position == 1
            resumed = await world.connect(1).ask("a", open=RESUME)
            assert (reason(resumed), resumed.position) == ("opened", 1)
        else:
            assert (answer.session if call == "Fork" else answer).position == 6

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_close_on_a_stream_of_a_server_that_was_paused_closes_nothing_elsewhere_and_says_so() -> None:
    async def act(world: World) -> None:
        old = await begin(world, STRICT)
        world.loop.pause(world.replicas[0].life, 3.0)
        new = await take_over(world)
        sent = old.send("a", close=pb.Close())
        assert await sent.wait(10.0)
        assert reason(sent.answer) in ("SESSION_MOVED", "SESSION_NOT_FOUND")
        assert await fed(new, "a", 7, position=6) == 7

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_session_that_no_server_claimed_continues_after_a_disconnection() -> None:
    async def act(world: World) -> None:
        stream = await begin(world, CHECKPOINT)
        await opened(stream, "plain", durability=NONE)
        world.faults.cuts[world.replicas[0].name] = world.shared.clock() + 3.0
        await asyncio.sleep(_PAST_LEASE_S)
        assert reason(await stream.ask("a", feed=feed(7, position=2))) == "STORE_UNAVAILABLE"
        assert await fed(stream, "plain", 7) == 1, "what is not stored needs no lease"
        await asyncio.sleep(3.0)
        assert not stream.notices
        assert await fed(stream, "a", 7, position=2) == 3

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_step_batches_of_sessions_that_were_taken_report_them_alone() -> None:
    async def act(world: World) -> None:
        stream = world.connect(0)
        handles = [
            await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0)),
            await opened(stream, "b", durability=CHECKPOINT, on_disconnect=keep(20.0)),
            await opened(stream, "c", durability=NONE),
        ]
        await fed(stream, "a", 5, 5)
        await asyncio.sleep(0.5)
        world.loop.pause(world.replicas[0].life, 3.0)
        await take_over(world)
        sent = stream.send(step_batch=pb.StepBatch(handles=handles, token_ids=[5, 5, 5]))
        assert await sent.wait(10.0)
        answer = sent.answer.batch_stepped
        assert [one.index for one in answer.errors] == [0], answer
        assert list(answer.positions)[1:] == [1, 1]

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_live_session_is_stored_again_when_the_store_has_lost_everything() -> None:
    async def act(world: World) -> None:
        await begin(world, STRICT)
        await opened(world.connect(0), "kept", durability=NONE, on_disconnect=keep(20.0))
        world.shared.records.clear()
        world.shared.leases.clear()
        await asyncio.sleep(1.0)
        assert world.stored("a").position == 2
        assert reason(await world.connect(1).ask("kept", open=pb.Open(model="lazy", durability=STRICT))) == (
            "SESSION_ID_IN_USE"
        ), "its id is reserved again"
        world.replicas[0].kill()
        await asyncio.sleep(_PAST_LEASE_S)
        resumed = await world.connect(1).ask("a", open=RESUME)
        assert (reason(resumed), resumed.position) == ("opened", 2)

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_store_that_evicts_and_refuses_writes_is_asked_no_more_often_than_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a Redis does whose `maxmemory` is below what it needs: it answers heartbeats, and forgets them at once."""
    calls: Counter[str] = Counter()
    beat, write = SimulatedStore.heartbeat, SimulatedStore.write

    def heartbeat(self: SimulatedStore) -> Beat:
        calls["heartbeat"] += 1
        return beat(self)._replace(term=str(calls["heartbeat"]))

    def refuse(self: SimulatedStore, writes: Sequence[Write]) -> Written:
        if any(one.payload for one in writes):
            calls["write"] += 1
            raise StoreError("no memory")
        return write(self, writes)

    async def act(world: World) -> None:
        stream = await begin(world, STRICT)
        with monkeypatch.context() as full:
            full.setattr(SimulatedStore, "heartbeat", heartbeat)
            full.setattr(SimulatedStore, "write", refuse)
            world.shared.records.clear()
            assert reason(await stream.ask("a", feed=feed(7, position=2))) == "STORE_UNAVAILABLE"
            calls.clear()
            await asyncio.sleep(10.0)
        knobs = world.knobs
        assert calls["heartbeat"] <= knobs.num_replicas * 10.0 / (knobs.lease_s / 4)
        assert calls["write"] <= 10.0 / knobs.checkpoint_interval_s + 10.0, "each interval, and with each renewal"
        await asyncio.sleep(1.0)
        assert await fed(stream, "a", 7, position=2) == 3
        assert world.stored("a").position == 3

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_session_whose_write_failed_is_confirmed_as_soon_as_the_store_answers() -> None:
    async def act(world: World) -> None:
        stream = await begin(world, STRICT)
        await asyncio.sleep(0.5)
        world.faults.is_down = True
        assert reason(await stream.ask("a", feed=feed(7, position=2))) == "STORE_UNAVAILABLE"
        await asyncio.sleep(2.0)
        world.faults.is_down = False
        await asyncio.sleep(world.knobs.lease_s / 3)
        sent = stream.send("a", feed=feed(7, position=2))
        assert await sent.wait(0.1)
        assert sent.answer.position == 3

    play(act, idle_timeout_s=30.0, checkpoint_interval_s=5.0, does_finish=False)


def test_a_record_without_a_session_is_released_on_request() -> None:
    """The answer to the server's claim was lost, and no client asked the server again."""

    async def act(world: World) -> None:
        (await begin(world, STRICT)).leave()
        world.replicas[0].kill()
        await asyncio.sleep(_PAST_LEASE_S)
        world.shared.records["a"].owner = world.replicas[1].life.name
        await world.replicas[0].start()
        resumed = await world.connect(0).ask("a", open=RESUME)
        assert (reason(resumed), resumed.position) == ("opened", 2)

    play(act, idle_timeout_s=30.0, does_finish=False)


@pytest.mark.parametrize("how", ["stream", "call"])
def test_a_close_at_a_server_that_is_cut_off_is_done_where_the_session_is_by_then(how: str) -> None:
    async def act(world: World) -> None:
        old = await begin(world, STRICT)
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 3.0
        new = await take_over(world)
        if how == "stream":
            answer: Any = await old.ask("a", close=pb.Close())
        else:
            answer = await world.call("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a"))
        assert reason(answer) == "STORE_UNAVAILABLE", "it is closed all the same"
        await asyncio.sleep(6.0)
        assert [notice.closed.reason for notice in new.notices] == [pb.CLOSE_REASON_MOVED]
        for slot in (0, 1):
            assert reason(await world.connect(slot).ask("a", open=RESUME)) == "SESSION_NOT_FOUND"

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_close_that_was_promised_is_kept_where_the_session_is() -> None:
    """The session belonged to this server when it was closed. Another server took it before the close was stored."""

    async def act(world: World) -> None:
        await begin(world, STRICT)
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 4.0
        answer = await world.call("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a"))
        assert (reason(answer), "closed on this server" in answer.message) == ("STORE_UNAVAILABLE", True)
        new = await take_over(world)
        await asyncio.sleep(6.0)
        assert [notice.closed.reason for notice in new.notices] == [pb.CLOSE_REASON_MOVED]
        assert reason(await world.connect(1).ask("a", open=RESUME)) == "SESSION_NOT_FOUND"
        again = await world.connect(1).ask("a", open=pb.Open(model="lazy", durability=STRICT))
        assert reason(again) == "opened", "its id is free"

    play(act, idle_timeout_s=30.0, does_finish=False)


@pytest.mark.parametrize("how", ["pause", "cut"])
def test_an_id_is_not_refused_for_a_session_that_has_ended_elsewhere(how: str) -> None:
    async def act(world: World) -> None:
        await begin(world, CHECKPOINT)
        first = world.replicas[0]
        if how == "pause":
            world.loop.pause(first.life, 3.0)
        else:
            world.faults.cuts[first.name] = world.shared.clock() + 3.0
        new = await take_over(world)
        assert reason(await new.ask("a", close=pb.Close())) == "closed"
        again = pb.Open(model="lazy", durability=CHECKPOINT)
        answer = await world.connect(0).ask("a", open=again)
        assert reason(answer) in ("opened", "STORE_UNAVAILABLE"), "nothing has it, and this server need not know"
        await asyncio.sleep(4.0)
        if reason(answer) != "opened":
            assert reason(await world.connect(0).ask("a", open=again)) == "opened"

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_last_record_that_comes_late_brings_no_session_back() -> None:
    """A disconnected server hands the session over, but cannot store its last record. Meanwhile another server resumes
    the session, and the record of that server expires."""

    async def act(world: World) -> None:
        stream = world.connect(0)
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(1.0))
        await fed(stream, "a", 5)
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 12.0
        stream.leave()
        await asyncio.sleep(_PAST_LEASE_S)
        new = world.connect(1)
        assert reason(await new.ask("a", open=RESUME)) == "opened"
        assert await fed(new, "a", 6) == 2
        await asyncio.sleep(16.0)
        assert world.stored("a") is None
        for slot in (0, 1):
            assert reason(await world.connect(slot).ask("a", open=RESUME)) == "SESSION_NOT_FOUND"

    play(act, idle_timeout_s=2.0, does_finish=False)


def test_an_old_copy_is_not_stored_where_others_had_the_session_and_its_record_is_gone() -> None:
    """The server was disconnected for longer than records live. Another server took the session, and was killed."""

    async def act(world: World) -> None:
        old = world.connect(0)
        await opened(old, "a", durability=STRICT, on_disconnect=keep(1.0))
        await fed(old, "a", 5, 5)
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 16.0
        await take_over(world)
        for turn in range(6):  # the client keeps trying
            await asyncio.sleep(2.0)
            assert reason(await old.ask("a", feed=feed(7, position=2))) == "STORE_UNAVAILABLE"
            if turn == 2:
                world.replicas[1].kill()
        assert world.stored("a") is None
        await asyncio.sleep(4.0)
        assert world.stored("a") is None, "what the client knows is at position 6"
        answer = await world.connect(0).ask("a", open=RESUME)
        assert reason(answer) == "SESSION_NOT_FOUND"

    play(act, idle_timeout_s=3.0, does_finish=False)


def test_a_close_that_was_promised_leaves_a_new_session_of_the_id_alone() -> None:
    async def act(world: World) -> None:
        stream = world.connect(0)
        await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(0.5))
        await asyncio.sleep(0.5)
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 6.0
        await asyncio.sleep(1.5)
        answer = await stream.ask("a", close=pb.Close())
        assert "closed on this server" in answer.error.message
        await asyncio.sleep(1.5)
        new = world.connect(1)
        await opened(new, "a", durability=NONE, on_disconnect=keep(20.0))
        for position in range(1, 7):
            await asyncio.sleep(1.0)
            assert await fed(new, "a", 5) == position
        assert not new.notices, "it stays where it is"

    play(act, idle_timeout_s=2.0, does_finish=False)


def test_a_session_that_was_opened_during_a_disconnection_continues_afterwards() -> None:
    """No other server can have had the session, however long other servers were connected meanwhile."""

    async def act(world: World) -> None:
        first = world.replicas[0]
        world.faults.cuts[first.name] = world.shared.clock() + 8.0
        await asyncio.sleep(4.0)
        stream = world.connect(0)
        answer = await stream.ask(open=pb.Open(model="lazy", durability=CHECKPOINT, on_disconnect=keep(20.0)))
        assert reason(answer) == "opened", "its id is the server's"
        for _ in range(5):
            await asyncio.sleep(1.0)
            await stream.ask(answer.session_id, feed=feed(5))
        assert not stream.notices
        assert await fed(stream, answer.session_id, 5) >= 1

    play(act, idle_timeout_s=2.0, does_finish=False)


def pause_before_answer(world: World, monkeypatch: pytest.MonkeyPatch, method: str) -> asyncio.Future[None]:
    """Pauses the first replica when the store has carried out its next call of `method`, before the replica has the
    answer.

    Returns a future that is done then.
    """
    right, life = getattr(SimulatedStore, method), world.replicas[0].life
    paused = asyncio.get_running_loop().create_future()

    def pause() -> None:
        world.loop.pause(life, 3.0)
        paused.set_result(None)

    def call(self: SimulatedStore, asked: Sequence[Any]) -> Any:
        found = right(self, asked)
        if self.owner == life.name:
            monkeypatch.undo()
            world.loop.call_soon(pause, context=Context())
        return found

    monkeypatch.setattr(SimulatedStore, method, call)
    return paused


@pytest.mark.parametrize("what", ["resume", "resume elsewhere", "feed", "get"])
def test_what_was_stored_before_a_pause_does_not_make_an_old_copy_anybodys(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has carried out the write, and its answer arrives when another server has the session."""

    async def act(world: World) -> None:
        old, other = world.connect(0), world.connect(0)
        await opened(old, "a", durability=CHECKPOINT, on_disconnect=keep(20.0))
        await asyncio.sleep(0.5)
        paused = pause_before_answer(world, monkeypatch, "write")
        await fed(old, "a", 5, 6)
        await paused
        assert world.stored("a").position == 2
        await take_over(world)
        if what == "get":
            answer = await world.call("Sessions.Get", GET)
            assert reason(answer) in ("SESSION_MOVED", "SESSION_NOT_FOUND"), answer
            return
        stream = other if what == "resume elsewhere" else old
        answer = await (stream.ask("a", feed=feed(7)) if what == "feed" else stream.ask("a", open=RESUME))
        reported = (reason(answer), answer.position)
        assert reported in [("SESSION_MOVED", answer.position), ("SESSION_NOT_FOUND", 0), ("opened", 6)], answer

    play(act, idle_timeout_s=30.0, does_finish=False)


def test_a_claim_that_was_answered_late_restores_no_old_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(world: World) -> None:
        old = await begin(world, CHECKPOINT)
        await opened(old, "b")
        await fed(old, "b", 5)
        paused = pause_before_answer(world, monkeypatch, "claim")
        before = old.send("a", feed=feed(7, position=2))
        await paused
        await take_over(world)
        answer = await world.call("Sessions.Get", GET)
        assert reason(answer) in ("SESSION_MOVED", "SESSION_NOT_FOUND"), answer
        assert await before.wait(5.0)
        assert reason(before.answer) == "SESSION_MOVED"

    play(act, idle_timeout_s=30.0, num_slots=1, does_finish=False)


def test_a_late_answer_to_a_claim_creates_no_old_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(world: World) -> None:
        begun = world.connect(1)
        await opened(begun, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(begun, "a", 5, 6)
        world.replicas[1].kill()
        await asyncio.sleep(_PAST_LEASE_S)
        await world.replicas[1].start()
        paused = pause_before_answer(world, monkeypatch, "claim")
        first, second = world.connect(0), world.connect(0)
        one = first.send("a", open=RESUME)
        await paused
        await take_over(world)
        other = second.send("a", open=RESUME)
        for sent in (one, other):
            assert await sent.wait(10.0)
            assert (reason(sent.answer), sent.answer.position) == ("opened", 6)

    play(act, idle_timeout_s=30.0, does_finish=False)


@pytest.mark.parametrize("end", ["close", "cancel"])
def test_requests_that_wait_for_confirmation_do_not_see_results_of_others(end: str) -> None:
    async def act(world: World) -> None:
        old = await begin(world, CHECKPOINT)
        other = world.connect(0)
        await opened(other, "plain", durability=NONE)
        world.loop.slowness_s = 0.3
        world.loop.pause(world.replicas[0].life, 3.0)
        await asyncio.sleep(3.1)
        resumed = other.send("a", open=RESUME)
        await asyncio.sleep(0.05)
        assert not resumed.is_done
        old.send("a", **({"close": pb.Close()} if end == "close" else {"cancel": pb.Cancel()}))
        assert await resumed.wait(10.0)
        assert reason(resumed.answer) == ("SESSION_NOT_FOUND" if end == "close" else "opened")

    play(act, idle_timeout_s=30.0, does_finish=False)

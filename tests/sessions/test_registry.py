"""Sessions over a real engine, with a clock that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.engine.decoding import Decoding
from service.engine.engine import Engine
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.limits import EngineLimits
from service.engine.results import Encoded, Failed, Fed, Generated, Result
from service.errors import (
    IllegalRequestError,
    InvalidFieldError,
    PositionMismatchError,
    QueueFullError,
    SessionIdInUseError,
    SessionNotFoundError,
    ShuttingDownError,
    TooManySessionsError,
)
from service.repository.bundle import load_bundle
from service.sessions.answer_memory import AnswerBudget, StreamBudget
from service.sessions.lifecycle import State
from service.sessions.limits import SessionLimits
from service.sessions.request import Reply, Request
from service.sessions.served import Served
from service.sessions.service import SessionService
from service.sessions.session import CloseReason, Session
from service.sessions.snapshot import Codec
from service.sessions.step_columns import StepBatch
from service.sessions.storage import Storage
from service.sessions.stores.memory import MemoryStore
from tests.waiting import turns, until


class Events:
    """A `SessionObserver` and an `EngineObserver` that records the events of sessions."""

    def __init__(self) -> None:
        self.reports: list[tuple[Any, ...]] = []

    def session_opened(self, model: str, version: int, session_id: str) -> None:
        self.reports.append(("opened", session_id))

    def session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        self.reports.append(("closed", session_id, reason, position))

    def first_token(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        self.reports.append(("first token", seconds, num_tokens))

    def request_answered(
        self, model: str, version: int, request: str, seconds: float, num_tokens: int, *, trace: object
    ) -> None:
        self.reports.append((request, seconds, num_tokens))

    is_tracing = False

    def batch_ran(self, report: object) -> None: ...

    def batch_traced(self, tags: object, report: object) -> None: ...

    def batch_failed(self, kind: object, num_rows: int, error: BaseException) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *facts: self.reports.append((name, *facts))


class Sessions:
    """Sessions with one engine, and a clock that only the test moves."""

    def __init__(self, served: Served, limits: SessionLimits) -> None:
        self.now_s = 1000.0
        self.events = Events()
        self.served = served
        self.notices: list[tuple[str, CloseReason]] = []
        self.service = SessionService(
            Storage(MemoryStore(), Codec(b"a key of sixteen"), self.events),
            limits,
            self.events,
            find=lambda model, version, variant: served,
            interval_s=1.0,
            num_tokens=4096,
            patience_s=5.0,
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s + 1.7e9,
        )
        self.registry = self.service.registry

    async def open(self, session_id: str = "", outputs: OutputSpec | None = None) -> Session:
        answered: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        new = self.service.opening.prepare(
            self.served,
            session_id,
            None,
            outputs,
            request=self.request(None, 1, lambda _, result: answered.set_result(result)),
            on_ended=lambda ended, reason: self.notices.append((ended.id, reason)),
            is_chosen=False,
        )
        session = new.session
        self.service.opening.begin(new)
        assert isinstance(await answered, Encoded | Fed)
        return session

    def feed(
        self, session: Session, position: int | None, tokens: list[int], outputs: OutputSpec | None = None
    ) -> asyncio.Future[tuple[Request, Result]]:
        answered: asyncio.Future[tuple[Request, Result]] = asyncio.get_running_loop().create_future()
        request = self.request(session, 2, lambda request, result: answered.set_result((request, result)))
        self.service.requests.feed(request, position, tokens, outputs or OutputSpec())
        return answered

    async def generate(self, session: Session, max_tokens: int) -> list[Generated]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        results: list[Generated] = []

        def reply(request: Request, result: Result) -> None:
            assert isinstance(result, Generated)
            results.append(result)
            if result.finish_reason is not None:
                done.set_result(None)

        request = self.request(session, 3, reply)
        self.service.generations.generate(request, None, Decoding(max_tokens), field="generate.decoding")
        await done
        return results

    def request(self, session: Session | None, request_id: int, reply: Reply) -> Request:
        return Request(session, request_id, reply, self.now_s)


@asynccontextmanager
async def opened(
    repository: Path, model: str = "tiny-endless", *, num_slots: int | None = None, **limits: Any
) -> AsyncIterator[Sessions]:
    bundle = load_bundle(repository / model / "1")
    engine_limits = EngineLimits(num_slots=num_slots or limits.get("max_sessions", 50))
    engine = Engine(bundle, engine_limits, Events(), asyncio.get_running_loop(), lambda error: None)
    engine.start()
    try:
        yield Sessions(Served(bundle, engine), SessionLimits(**limits))
    finally:
        engine.stop()


async def test_an_idle_session_expires_and_a_used_or_busy_one_does_not(tiny_repository: Path) -> None:
    async with opened(tiny_repository, idle_timeout_s=10.0) as it:
        idle, used, busy = await it.open("idle"), await it.open("used"), await it.open("busy")
        it.now_s += 9.0
        await it.feed(used, 0, [5])
        long = it.feed(busy, 0, [5] * 3000, OutputSpec(OutputKind.NONE))
        it.now_s += 1.5
        it.service.expiry.expire()
        assert (idle.state, used.state, busy.state) == (State.ENDED, State.IDLE, State.BUSY)
        assert it.notices == [("idle", CloseReason.IDLE)]
        assert ("closed", "idle", "idle", 0) in it.events.reports
        assert isinstance((await long)[1], Fed)
        it.now_s += 10.2
        it.service.expiry.expire()
        assert len(it.service.directory) == 0
        with pytest.raises(SessionNotFoundError, match="'used' is gone: it was closed because it was idle") as raised:
            it.registry.get("used")
        assert raised.value.facts["position"] == 1


async def test_a_drain_waits_for_feeds_but_not_for_generations_without_a_reader(tiny_repository: Path) -> None:
    async with opened(tiny_repository, generation_window=4) as it:
        parked, fed = await it.open("parked"), await it.open("fed")
        is_full = asyncio.Event()  # its window is full
        request = it.request(parked, 3, lambda _, result: is_full.set() if result.position == 4 else None)
        it.service.generations.generate(request, None, Decoding(100), field="generate.decoding")
        await is_full.wait()
        assert not it.service.handover.busy()()
        long = it.feed(fed, 0, [5] * 3000, OutputSpec(OutputKind.NONE))
        is_busy = it.service.handover.busy()
        assert is_busy()
        await long
        assert not is_busy()


async def test_a_session_that_step_batches_use_is_left_its_whole_idle_timeout(tiny_repository: Path) -> None:
    async with opened(tiny_repository, idle_timeout_s=10.0) as it:
        session, done = await it.open("used"), asyncio.Semaphore(0)
        batch = StepBatch([session], {}, [5], None, None, OutputSpec(), None)
        for _ in range(2):  # the second use comes too soon to update the time of last use
            it.now_s += 0.07
            it.service.step_batches.step(batch, lambda *_: done.release(), lambda num_bytes: None)
            await done.acquire()
        it.now_s += 9.99
        it.service.expiry.expire()
        assert session.state is State.IDLE


async def test_a_closed_id_is_free_at_once_and_its_work_is_answered_as_cancelled(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        first = await it.open("same")
        answer = it.feed(first, 0, [5] * 5000, OutputSpec(OutputKind.NONE))
        it.registry.close(first, CloseReason.CLIENT, notify=False)
        it.registry.close(first, CloseReason.DISCONNECT, notify=False)
        second = await it.open("same")
        assert second is not first
        assert isinstance((await answer)[1], Failed)
        assert isinstance((await it.feed(second, 0, [5]))[1], Fed)
        assert [event for event in it.events.reports if event[0] == "closed"] == [("closed", "same", "client", 0)]
        assert it.notices == []


async def test_the_end_of_a_session_is_reported_with_its_last_position(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        answer = it.feed(session, 0, [5] * 50_000, OutputSpec(OutputKind.NONE))
        await until(lambda: session.lane.position)  # nothing reports the position in the middle of a feed
        it.registry.close(session, CloseReason.CLIENT, notify=False)
        failed = (await answer)[1]
        assert isinstance(failed, Failed)
        assert 0 < failed.position < 50_000
        await turns(10)
        assert [event for event in it.events.reports if event[0] == "closed"] == [
            ("closed", "s", "client", failed.position)
        ]


async def test_a_repeated_feed_is_applied_once_however_often_and_whenever_it_comes(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open()
        futures = [it.feed(session, 0, [5, 6]) for _ in range(3)]
        answers = [await future for future in futures] + [await it.feed(session, 0, [5, 6])]
        assert [request.replayed for request, _ in answers] == [False, True, True, True]
        assert all(result == answers[0][1] for _, result in answers)
        assert session.position == 2
        with pytest.raises(PositionMismatchError, match=r"feed.position = 0, but the session is at position 2"):
            it.feed(session, 0, [5, 7])
        with pytest.raises(PositionMismatchError):
            it.feed(session, 0, [5, 6], OutputSpec(OutputKind.LOGITS))
        await it.generate(session, 1)
        with pytest.raises(PositionMismatchError, match="is at position 3"):
            it.feed(session, 0, [5, 6])


async def test_a_feed_without_position_can_be_repeated_once_its_position_is_known(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open()
        await it.feed(session, None, [5])
        await it.feed(session, None, [5])
        assert session.position == 2
        request, _ = await it.feed(session, 1, [5])
        assert request.replayed
        assert session.position == 2


async def test_a_refused_request_changes_neither_state_nor_turn(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_in_flight=2, max_feed_tokens=4000, max_generate_tokens=9) as it:
        session = await it.open()
        for position, tokens, error in ((0, [], InvalidFieldError), (0, [5] * 4001, InvalidFieldError)):
            with pytest.raises(error):
                it.feed(session, position, tokens)
        with pytest.raises(InvalidFieldError, match=r"generate\.decoding\.max_tokens = 10 must be 1 to 9"):
            await it.generate(session, 10)
        assert (session.state, session.num_in_flight, session.position) == (State.IDLE, 0, 0)
        futures = [it.feed(session, None, [5] * 4000, OutputSpec(OutputKind.NONE)) for _ in range(2)]
        with pytest.raises(QueueFullError, match="has 2 requests in flight"):
            it.feed(session, None, [5])
        assert (session.state, session.num_in_flight) == (State.BUSY, 2)
        await asyncio.gather(*futures)
        assert (session.state, session.num_in_flight, session.position) == (State.IDLE, 0, 8000)


async def test_a_position_that_is_wrong_while_work_is_in_flight_harms_only_its_own_feed(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open()
        first = it.feed(session, 0, [5] * 1000, OutputSpec(OutputKind.NONE))
        wrong = it.feed(session, 7, [5])
        right = it.feed(session, 1000, [6])
        assert isinstance((await first)[1], Fed)
        failed = (await wrong)[1]
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, PositionMismatchError)
        assert failed.position == 1000
        assert (await right)[1].position == 1001


async def test_retries_of_a_feed_in_flight_are_bounded_as_requests_are(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_in_flight=3) as it:
        session = await it.open()
        fed = [it.feed(session, 0, [5] * 1000) for _ in range(4)]
        with pytest.raises(QueueFullError, match="3 retries of this request already wait for its response"):
            it.feed(session, 0, [5] * 1000)
        results = [await one for one in fed]
        assert all(result is results[0][1] for _, result in results)
        assert [request.replayed for request, _ in results] == [False, True, True, True]
        assert session.position == 1000


async def test_cancel_answers_all_requests_in_flight_and_returns_their_number(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open()
        futures = [it.feed(session, None, [5] * 2000, OutputSpec(OutputKind.NONE)) for _ in range(3)]
        cancelled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        it.service.requests.cancel(session, lambda count, position, error: cancelled.set_result(count))
        count = await cancelled
        failed = [result for _, result in [await future for future in futures] if isinstance(result, Failed)]
        assert len(failed) == count
        assert session.state is State.IDLE
        assert (await it.feed(session, session.position, [5]))[1].position == session.position


async def test_nothing_opens_past_the_limit_or_under_a_used_id_or_while_draining(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_sessions=2) as it:
        await it.open("a")
        with pytest.raises(SessionIdInUseError, match="'a' is in use"):
            await it.open("a")
        last = await it.open("b")
        with pytest.raises(TooManySessionsError, match="2 sessions are open"):
            await it.open("c")
        it.registry.is_draining = True
        with pytest.raises(ShuttingDownError):
            await it.open("d")
        assert (await it.feed(last, 0, [5]))[1].position == 1  # open sessions continue
        assert len(it.service.directory) == 2
        it.service.handover.end_all()
        assert it.notices == [("a", CloseReason.SHUTDOWN), ("b", CloseReason.SHUTDOWN)]


async def test_outputs_at_open_need_a_start_token(tiny_repository: Path) -> None:
    top_two = OutputSpec(OutputKind.TOP_K, 2)
    async with opened(tiny_repository, "tiny-lm") as it:
        with pytest.raises(InvalidFieldError, match=r"open\.outputs must not be set: tiny-lm has no start token"):
            await it.open(outputs=top_two)
        assert len(it.service.directory) == 0
    async with opened(tiny_repository) as it:
        session = await it.open(outputs=top_two)
        assert (session.state, session.position) == (State.IDLE, 0)


async def test_what_was_done_is_observed_with_its_time_and_tokens(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("seen")
        future = it.feed(session, 0, [5, 6, 7])
        it.now_s += 2.0
        await future
        await it.generate(session, 4)
        first, *following = [found for found in it.events.reports if found[0] in ("first token", "next_tokens")]
        assert first[:2] == ("first token", 0.0)
        assert {found[-2] for found in following} == {0.0}
        assert sum(found[-1] for found in (first, *following)) == 4, "tokens are reported as they come"
        assert [found for found in it.events.reports if found[0] not in ("first token", "next_tokens")] == [
            ("opened", "seen"),
            ("feed", 2.0, 3),
            ("generate", 0.0, 0),
        ]


async def test_feeding_while_generating_is_illegal_and_says_what_to_do(tiny_repository: Path) -> None:
    async with opened(tiny_repository, generation_window=2) as it:
        session = await it.open("gen")
        produced: asyncio.Queue[tuple[Request, Result]] = asyncio.Queue()
        request = it.request(session, 1, lambda request, result: produced.put_nowait((request, result)))
        it.service.generations.generate(request, 0, Decoding(5), field="generate.decoding")
        with pytest.raises(IllegalRequestError, match=r"feed: session 'gen' is generating .* or cancel it"):
            it.feed(session, None, [5])
        num_tokens = 0
        while num_tokens < 5:
            request, result = await produced.get()
            assert isinstance(result, Generated)
            assert request.granted is not None
            num_tokens += len(result.token_ids)
            request.granted(len(result.token_ids), result.position)
        assert session.state is State.IDLE


async def test_a_replayed_answer_after_the_end_does_not_count_as_use(tiny_repository: Path) -> None:
    """The engine already has the result, but delivers it after the session's end."""
    async with opened(tiny_repository) as it:
        session, closer = await it.open(), await it.open()
        others = [
            it.service.opening.prepare(
                it.served,
                name,
                None,
                None,
                request=it.request(None, 1, lambda request, result: None),
                on_ended=lambda ended, reason: None,
            ).session
            for name in "ab"
        ]

        def close(request: Request, result: Result) -> None:
            it.registry.close(session, CloseReason.CLIENT, notify=False)

        # both feeds are rows of one batch, whose results are delivered in order
        it.service.requests.feed(it.request(closer, 3, close), 0, [5], OutputSpec())
        answers = [it.feed(session, 0, [5])]
        session.last.is_cancelled = True  # type: ignore[union-attr]  # as after a Cancel that comes too late
        answers.append(it.feed(session, 0, [5]))
        (_, first), (again, second) = [await one for one in answers]
        assert again.replayed
        assert first == second
        assert session.is_over
        assert it.service.directory.unused_since(it.now_s + 1.0) == [closer, *others]


async def test_the_memory_of_large_feeds_and_scores_in_flight_is_limited(tiny_repository: Path) -> None:
    """Per stream: its budget says when to stop reading. For all streams: a request over the limit is refused, and
    changes nothing."""
    nothing = OutputSpec(OutputKind.NONE)

    def ask(it: Sessions, session: Session, budget: StreamBudget) -> tuple[Request, asyncio.Future[Result]]:
        answered: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        reply = lambda request, result: answered.set_result(result)  # noqa: E731
        return Request(session, 1, reply, it.now_s, budget), answered

    async with opened(tiny_repository, max_feed_tokens=20_000) as it:
        session, all_streams = await it.open(), AnswerBudget(1_400_000)
        stream, other = StreamBudget(all_streams), StreamBudget(all_streams)
        request, answered = ask(it, session, stream)
        it.service.requests.feed(request, None, [5] * 20_000, nothing)
        assert 800_000 <= stream.num_bytes <= 1_000_000
        refused, _ = ask(it, session, other)
        with pytest.raises(QueueFullError, match="in flight and their responses take up to"):
            it.service.requests.feed(refused, None, [5] * 20_000, nothing)
        small, answered_small = ask(it, session, other)
        it.service.requests.feed(small, None, [5] * 100, nothing)
        assert other.num_bytes == 0
        assert isinstance(await answered, Fed)
        assert isinstance(await answered_small, Fed)
        assert session.position == 20_100
        request.release()
        assert all_streams.num_bytes == 0
        score, _ = ask(it, session, stream)
        it.service.requests.score(score, None, [[5] * 18_000], with_end=False, field="score.")
        assert stream.num_bytes >= 720_000
        it.registry.close(session, CloseReason.CLIENT, notify=False)

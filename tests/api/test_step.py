"""`Step`: the call releases what it holds, and its response fits into one message."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from carousel.v1 import inference_pb2 as pb
from service.api.caller import NOBODY, Caller, Principal
from service.api.step import Step
from service.errors import (
    PositionMismatchError,
    QueueFullError,
    SessionNotFoundError,
    SessionNotOpenError,
    TooManySessionsError,
)
from service.sessions.limits import PolicyLimits
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns

OPEN = pb.Open(model="tiny-endless")
LOGITS = pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS)


async def step(it: Sessions, session_id: str = "", caller: Caller = NOBODY, **fields: Any) -> pb.StepResponse:
    hosting = SimpleNamespace(find=lambda *names, **more: it.served, known=lambda model: model)
    domain = SimpleNamespace(hosting=hosting, sessions=it.service, policy_limits=PolicyLimits())
    return await Step(cast(Any, domain), caller).answer(pb.StepRequest(session_id=session_id, **fields))


async def test_outputs_that_do_not_fit_are_left_out_of_the_response(tiny_repository: Path) -> None:
    feed = pb.Feed(token_ids=[5], position=0, outputs=LOGITS)
    opening = pb.Open(model="tiny-endless", outputs=LOGITS)
    async with opened(tiny_repository) as it:
        whole = await step(it, "s", open=opening, feed=feed)
        assert whole.opened.output.logits
    async with opened(tiny_repository, max_answer_bytes=whole.ByteSize() - 1) as it:
        fitting = await step(it, "s", open=opening, feed=feed)
        assert fitting.fed == whole.fed
        assert not fitting.opened.HasField("output")
        assert fitting.opened.model == "tiny-endless"


async def test_a_feed_that_returns_nothing_is_answered_as_one(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        nothing = pb.Feed(token_ids=[5], outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE))
        answer = await step(it, "s", open=OPEN, feed=nothing)
        assert answer.HasField("fed")
        assert (answer.position, list(answer.fed.outputs)) == (1, [])


async def test_a_call_cancelled_while_opening_leaves_the_session_detached(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        calling = asyncio.create_task(step(it, "s", open=OPEN, feed=pb.Feed(token_ids=[5], position=0)))
        while it.service.directory.get("s") is None:
            await turns()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert list(it.registry.held) == ["s"]
        answer = await step(it, "s", open=OPEN, feed=pb.Feed(token_ids=[5], position=0))
        assert (answer.position, answer.opened.restored_from) == (1, pb.RESTORED_FROM_MEMORY)
        assert it.service.answer_budget.num_bytes == it.service.deferral.num_bytes == 0


async def test_a_session_that_a_stream_resumes_first_is_not_fed(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        await step(it, "s", open=OPEN)
        session = it.service.directory.get("s")
        assert session is not None
        it.service.deferral.suspend(session)  # the session waits, as it does while it has no slot
        calling = asyncio.create_task(step(it, "s", feed=pb.Feed(token_ids=[5], position=0)))
        await turns()
        await it.service.resume.resume("s", lambda ended, reason: it.notices.append((ended.id, reason)))
        it.service.deferral.run(session)
        with pytest.raises(SessionNotOpenError, match="'s' is attached to a stream"):
            await calling
        assert (session.position, session.is_over, session.is_detached) == (0, False, False)


async def test_a_refused_feed_ends_the_session_that_its_call_opened_and_no_other(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        wrong = pb.Feed(token_ids=[5], position=1)
        with pytest.raises(PositionMismatchError):
            await step(it, "new", open=OPEN, feed=wrong)
        assert it.service.directory.get("new") is None
        await step(it, "there", open=OPEN)
        with pytest.raises(PositionMismatchError):
            await step(it, "there", open=OPEN, feed=wrong)
        assert it.service.directory.get("there") is not None


async def test_a_principal_has_its_own_sessions_and_no_more_than_it_may(tiny_repository: Path) -> None:
    one, other = Caller(Principal("one", max_sessions=1)), Caller(Principal("other"))
    async with opened(tiny_repository) as it:
        assert (await step(it, "s", one, open=OPEN, feed=pb.Feed(token_ids=[5]))).session_id == "s"
        assert (await step(it, "s", other, open=OPEN)).position == 0
        assert {session.id for session in it.service.directory} == {"one/s", "other/s"}
        made = await step(it, caller=other, open=OPEN)
        assert it.service.directory.get(f"other/{made.session_id}") is not None
        with pytest.raises(TooManySessionsError, match="principal 'one' has 1 sessions open"):
            await step(it, "t", one, open=OPEN)
        assert (await step(it, "s", one, open=OPEN)).position == 1


async def test_large_answers_in_flight_are_bounded(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_unwritten_bytes=1) as it:
        large = pb.Feed(token_ids=[5] * 200, position=0, outputs=pb.OutputSpec(every_position=True, kind=LOGITS.kind))
        await asyncio.gather(step(it, "a", open=OPEN), step(it, "b", open=OPEN))
        found = await asyncio.gather(step(it, "a", feed=large), step(it, "b", feed=large), return_exceptions=True)
        assert sorted(type(one).__name__ for one in found) == ["QueueFullError", "StepResponse"]
        (refused,) = [one for one in found if isinstance(one, QueueFullError)]
        assert "max_unwritten_bytes" in refused.facts
        assert it.service.answer_budget.num_bytes == 0


LAST: dict[str, Any] = {"feed": pb.Feed(token_ids=[6], position=1, outputs=LOGITS), "close": True}
"""A call that feeds and closes a session at position 1."""
UNSTORED = pb.Open(model="tiny-endless", durability=pb.DURABILITY_NONE)


async def test_a_closing_call_sent_again_gets_the_same_answer(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        await step(it, "s", open=UNSTORED, feed=pb.Feed(token_ids=[5], position=0))
        first = await step(it, "s", **LAST)
        again = await step(it, "s", **LAST)
        assert (first.fed.replayed, again.fed.replayed) == (False, True)
        again.fed.replayed = False
        assert again == first
        await step(it, "t", open=UNSTORED)
        assert await step(it, "t", close=True) == await step(it, "t", close=True)


OTHERS: dict[str, dict[str, Any]] = {
    "position": {**LAST, "feed": pb.Feed(token_ids=[6], position=2, outputs=LOGITS)},
    "tokens": {**LAST, "feed": pb.Feed(token_ids=[7], position=1, outputs=LOGITS)},
    "outputs": {**LAST, "feed": pb.Feed(token_ids=[6], position=1)},
    "mark": {**LAST, "feed": pb.Feed(token_ids=[6], position=1, outputs=LOGITS, mark=True)},
    "close": {**LAST, "close": False},
    "feed": {"close": True},
    "nothing": {},
}


@pytest.mark.parametrize("other", OTHERS)
async def test_another_call_does_not_find_the_closed_session(tiny_repository: Path, other: str) -> None:
    async with opened(tiny_repository) as it:
        await step(it, "s", open=UNSTORED, feed=pb.Feed(token_ids=[5], position=0))
        await step(it, "s", **LAST)
        with pytest.raises(SessionNotFoundError, match="was closed by a client at position 2"):
            await step(it, "s", **OTHERS[other])
        with pytest.raises(SessionNotFoundError, match="is unknown"):
            await step(it, "s", Caller(Principal("another")), **LAST)
        assert (await step(it, "s", **LAST)).fed.replayed


async def test_a_closing_feed_without_position_is_not_answered_again(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        await step(it, "s", open=UNSTORED)
        request: dict[str, Any] = {"feed": pb.Feed(token_ids=[5]), "close": True}
        await step(it, "s", **request)
        with pytest.raises(SessionNotFoundError):
            await step(it, "s", **request)


async def test_a_retry_of_a_call_that_opens_and_closes_opens_nothing(tiny_repository: Path) -> None:
    """The session had moved before the call, so a new session would refuse the feed."""
    async with opened(tiny_repository) as it:
        await step(it, "s", open=UNSTORED, feed=pb.Feed(token_ids=[5], position=0))
        await step(it, "s", open=UNSTORED, **LAST)
        again = await step(it, "s", open=UNSTORED, **LAST)
        assert (again.position, again.fed.replayed) == (2, True)
        assert not len(it.service.directory)


async def test_a_new_session_of_the_id_is_used_and_its_end_replaces_the_answer(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        await step(it, "s", open=UNSTORED, feed=pb.Feed(token_ids=[5], position=0))
        await step(it, "s", **LAST)
        await step(it, "s", open=UNSTORED)
        with pytest.raises(PositionMismatchError):
            await step(it, "s", **LAST)
        await step(it, "s", feed=pb.Feed(token_ids=[5]), close=True)
        with pytest.raises(SessionNotFoundError, match="at position 1"):
            await step(it, "s", **LAST)


async def test_a_closing_call_that_its_client_left_is_answered_again(tiny_repository: Path) -> None:
    """Wherever the call was cancelled, its retry gets what the call would have got."""
    async with opened(tiny_repository) as it:
        at, is_closed = 0, False
        while not is_closed:
            await step(it, f"s{at}", open=UNSTORED, feed=pb.Feed(token_ids=[5], position=0))
            calling = asyncio.create_task(step(it, f"s{at}", **LAST))
            for _ in range(at):
                await asyncio.sleep(0)
            is_closed = it.service.directory.get(f"s{at}") is None
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            again = await step(it, f"s{at}", **LAST)
            assert (again.position, again.closed.reason) == (2, pb.CLOSE_REASON_CLIENT)
            at += 1

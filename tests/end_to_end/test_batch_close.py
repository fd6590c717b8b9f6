"""One session of a batch is closed while the others continue."""

from __future__ import annotations

import pytest

from carousel import AsyncClient, Client, InvalidArgumentError, NotFoundError, SessionClosedError
from examples.local_service import LocalService
from tests.cutting import cuttable

policies = pytest.mark.parametrize("on_disconnect", ["free", "hold"])


@policies
def test_one_session_of_a_batch_is_closed_and_the_others_are_stepped(
    tiny_service: LocalService, on_disconnect: str
) -> None:
    with Client(tiny_service.target) as client, client.batch("tiny-endless", on_disconnect=on_disconnect) as batch:
        batch.open_many([None] * 3)
        batch.step([2, 3, 4])
        name = batch.session_ids[1]
        batch.close_session(1)
        batch.close_session(1)
        with pytest.raises(NotFoundError):
            client.sessions.get(name)
        step = batch.step([5, 6])
        assert (step.places, step.positions, step.errors) == ((0, 2), (2, 2), {})
        step = batch.step([5, 6], places=[1, 2])
        assert isinstance(step.errors[1], SessionClosedError)
        assert (step.places, list(step.errors), step.positions[1]) == ((1, 2), [1], 3)
        assert batch.open() == 3
        assert batch.step([2, 3, 4]).positions == (3, 4, 1)
        for place in (4, -1):
            with pytest.raises(IndexError, match=f"place = {place} has no session: this batch has opened 4"):
                batch.close_session(place)
            with pytest.raises(IndexError, match=f"place = {place} has no session"):
                batch.step([2], places=[place])
        assert len(batch) == 4
        with pytest.raises(InvalidArgumentError, match="has tokens for 4 sessions, but the step has 3"):
            batch.step([2] * 4)
        assert batch.step([2] * 3).errors == {}


def test_a_session_whose_step_is_in_flight_is_not_closed_and_others_are(tiny_service: LocalService) -> None:
    with Client(tiny_service.target) as client, client.batch("tiny-endless") as batch:
        batch.open_many([None] * 2)
        batch.send([2], places=[0])
        with pytest.raises(LookupError, match="place 0 is in flight"):
            batch.close_session(0)
        batch.close_session(1)
        assert batch.receive().positions == (1,)
        batch.close_session(0)
        assert batch.step([]).positions == ()


def test_the_others_are_resumed_without_a_session_that_was_closed(tiny_service: LocalService) -> None:
    with (
        cuttable(tiny_service.target) as (target, cut),
        Client(target) as client,
        client.batch("tiny-endless") as batch,
    ):
        batch.open_many([None] * 3)
        batch.step([2, 3, 4])
        batch.close_session(1)
        cut()
        step = batch.step([5, 6])
        assert (step.places, step.positions, step.errors) == ((0, 2), (2, 2), {})


def test_a_batch_whose_sessions_are_all_closed_opens_others(tiny_service: LocalService) -> None:
    with (
        cuttable(tiny_service.target) as (target, cut),
        Client(target) as client,
        client.batch("tiny-endless") as batch,
    ):
        batch.open()
        batch.close_session(0)
        cut()
        place = batch.open()
        assert (place, batch.step([2]).places) == (1, (1,))


async def test_one_session_of_an_asyncio_batch_is_closed(tiny_service: LocalService) -> None:
    async with AsyncClient(tiny_service.target) as client, client.batch("tiny-endless") as batch:
        await batch.open_many([None] * 2)
        await batch.step([2, 3])
        await batch.close_session(0)
        step = await batch.step([4])
        assert (step.places, step.positions, step.errors) == ((1,), (2,), {})

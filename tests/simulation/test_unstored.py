"""Completed requests of a strict session whose results could not be stored can all be sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from simulation.script import NATURE, Action
from simulation.streams import ClientStream, Sent
from simulation.world import World
from tests.simulation.scenes import RESUME, STRICT, fed, feed, keep, opened, play, reason

NOTHING = pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)
SIX = pb.Sequence(ids=pb.TokenIds(ids=[6]))


def score(position: int) -> pb.Score:
    """Returns a request for the score of token 6 at a position."""
    return pb.Score(position=position, targets=[SIX])


def generation(position: int, count: int = 3) -> pb.Generate:
    """Returns a generation of `count` tokens."""
    return pb.Generate(position=position, decoding=pb.Decoding(max_tokens=count, min_tokens=count))


def search(position: int) -> pb.Generate:
    """Returns a beam search of two tokens with two beams."""
    decoding = pb.Decoding(max_tokens=2, min_tokens=2, beam_search=pb.BeamSearch(beam_size=2))
    return pb.Generate(position=position, decoding=decoding)


async def answers(sent: list[Sent]) -> list[pb.StreamResponse]:
    """Waits for all responses. Returns the last response of each request."""
    for one in sent:
        assert await one.wait(20.0), f"{one} is not answered"
    return [one.answer for one in sent]


def bare(sent: Sent) -> pb.StreamResponse:
    """Returns a response without the fields that differ between retries. A generation's tokens are in one response."""
    copy = pb.StreamResponse()
    copy.CopyFrom(sent.answer)
    if copy.HasField("generated"):
        del copy.generated.tokens[:]
        copy.generated.tokens.extend(token for part in sent.responses for token in part.generated.tokens)
    copy.ClearField("request_id")
    copy.ClearField("session_id")
    copy.ClearField("checkpoint_position")
    if copy.HasField("fed"):
        copy.fed.replayed = False
    return copy


def send_all(stream: ClientStream, name: str, requests: list[dict[str, Any]]) -> list[Sent]:
    """Sends requests without waiting for responses."""
    return [stream.send(name, **request) for request in requests]


FEEDS = [{"feed": feed(5, position=0)}, {"feed": feed(6, 7, position=1)}, {"feed": feed(4, position=3)}]
MIXED = [
    {"feed": feed(5, position=0)},
    {"score": score(1)},
    {"feed": feed(6, position=1)},
    {"score": score(2)},
    {"generate": generation(2)},
]


@pytest.mark.parametrize("requests", [FEEDS, MIXED], ids=["feeds", "mixed"])
def test_requests_that_could_not_be_stored_are_all_answered_when_they_are_sent_again(
    requests: list[dict[str, Any]],
) -> None:
    """The responses are those of a plain session, and the requests are applied once."""

    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "plain")
        expected = send_all(stream, "plain", requests)
        end = (await answers(expected))[-1].position
        await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        for _ in range(2):
            reported = await answers(send_all(stream, "a", requests))
            assert [reason(answer) for answer in reported] == ["STORE_UNAVAILABLE"] * len(requests)
            assert [answer.position for answer in reported] == [0] * len(requests), "it is not stored"
        assert reported[0].error.metadata["position"] == str(end)
        assert reported[0].error.metadata["stored_position"] == "0"
        world.faults.is_down = False
        await asyncio.sleep(1.0)
        again = send_all(stream, "a", requests)
        assert all(answer.fed.replayed for answer in await answers(again) if answer.HasField("fed"))
        assert list(map(bare, again)) == list(map(bare, expected))
        assert await fed(stream, "a", 5, position=end) == end + 1

    play(act, idle_timeout_s=20.0, lease_s=9.0)


def test_more_requests_than_may_be_in_flight_are_all_answered_when_they_are_sent_again() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT)
        for is_down, reported in ((True, "STORE_UNAVAILABLE"), (False, "fed")):
            world.faults.is_down = is_down
            sent = []
            for position in range(100):
                sent.append(stream.send("a", feed=feed(5, position=position)))
                await answers(sent[-4:] if position % 4 == 3 else [])
            assert {reason(answer) for answer in await answers(sent)} == {reported}
            await asyncio.sleep(0.5)
        assert all(one.answer.fed.replayed for one in sent)

    play(act, idle_timeout_s=20.0, lease_s=30.0, max_in_flight=4)


def test_step_batches_without_sessions_are_refused_while_others_can_be_sent_again() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        await stream.ask(step_batch=pb.StepBatch(handles=[handle], token_ids=[5], positions=[0]))
        answer = await stream.ask(step_batch=pb.StepBatch(token_ids=[5], positions=[0]))
        assert reason(answer) == "EMPTY_SEQUENCE"
        world.faults.is_down = False

    play(act, idle_timeout_s=20.0, lease_s=30.0)


@pytest.mark.parametrize("first", [generation(1), search(1)], ids=["generation", "search"])
def test_a_generation_that_could_not_be_stored_is_answered_again_after_a_feed(first: pb.Generate) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "plain")
        await fed(stream, "plain", 5)
        expected = (await stream.ask("plain", generate=first)).position
        await opened(stream, "a", durability=STRICT)
        await fed(stream, "a", 5)
        world.faults.is_down = True
        assert reason(await stream.ask("a", generate=first)) == "STORE_UNAVAILABLE"
        assert reason(await stream.ask("a", feed=feed(6, position=expected))) == "STORE_UNAVAILABLE"
        world.faults.is_down = False
        await asyncio.sleep(1.0)
        again = await stream.ask("a", generate=first)
        assert (reason(again), again.position) == ("generated", expected)
        assert (await stream.ask("a", feed=feed(6, position=expected))).fed.replayed

    play(act, idle_timeout_s=20.0, lease_s=9.0)


@pytest.mark.parametrize("last", ["step batch", "feed"])
def test_step_batches_that_could_not_be_stored_are_answered_when_they_are_sent_again(last: str) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handles = [await opened(stream, "a", durability=STRICT), await opened(stream, "b")]
        batches = [
            pb.StepBatch(handles=handles, token_ids=[5 + at] * 2, positions=[at] * 2, outputs=NOTHING)
            for at in range(3)
        ]
        world.faults.is_down = True
        sent = [stream.send(step_batch=batch) for batch in batches]
        if last == "feed":
            sent.append(stream.send("a", feed=feed(4, position=3)))
        for answer in (await answers(sent))[:3]:
            assert [error.error.reason for error in answer.batch_stepped.errors] == ["STORE_UNAVAILABLE"]
        world.faults.is_down = False
        await asyncio.sleep(1.0)
        for at, batch in enumerate(batches):
            stepped = (await stream.ask(step_batch=batch)).batch_stepped
            assert not stepped.errors, stepped
            assert list(stepped.positions) == [at + 1] * 2
            assert stepped.replayed
        position = 3 if last == "step batch" else 4
        assert await fed(stream, "a", 5, position=position) == position + 1

    play(act, idle_timeout_s=20.0, lease_s=9.0)


def test_unstored_requests_are_applied_again_where_they_were_lost() -> None:
    """The rule for clients is the same: they send all requests again, in order."""

    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        world.faults.is_down = True
        reported = await answers(send_all(stream, "a", FEEDS))
        assert {reason(answer) for answer in reported} == {"STORE_UNAVAILABLE"}
        world.replicas[0].kill()
        world.faults.is_down = False
        await asyncio.sleep(1.5)
        stream = world.connect(1)
        assert (await stream.ask("a", open=RESUME)).position == 0
        again = await answers(send_all(stream, "a", FEEDS))
        assert [(answer.position, answer.fed.replayed) for answer in again] == [(1, False), (3, False), (4, False)]

    play(act, idle_timeout_s=9.0, lease_s=1.0, does_finish=False)


def test_unstored_requests_are_answered_again_on_another_stream() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(3.0))
        world.faults.is_down = True
        await answers(send_all(stream, "a", FEEDS))
        stream.leave()
        await asyncio.sleep(0.1)
        world.faults.is_down = False
        await asyncio.sleep(1.0)
        stream = world.connect()
        assert (await stream.ask("a", open=RESUME)).position == 4
        again = await answers(send_all(stream, "a", FEEDS))
        assert [(answer.position, answer.fed.replayed) for answer in again] == [(1, True), (3, True), (4, True)]

    play(act, idle_timeout_s=9.0, lease_s=9.0)


def test_unstored_requests_are_not_answered_again_after_a_rewind() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(3.0))
        await fed(stream, "a", 4, mark=True)
        world.faults.is_down = True
        sent = [stream.send("a", feed=feed(5, position=1)), stream.send("a", feed=feed(6, position=2))]
        await answers(sent)
        world.faults.is_down = False
        request = sessions_pb2.SessionsRewindRequest(session_id="a", position=1)
        await world.call("Sessions.Rewind", request)
        assert await fed(stream, "a", 5, position=1) == 2
        answer = await stream.ask("a", feed=feed(6, position=2))
        assert (answer.position, answer.fed.replayed) == (3, False)

    play(act, idle_timeout_s=9.0, lease_s=9.0)


def test_the_model_of_a_client_knows_a_generation_that_is_asked_for_again_and_again() -> None:
    """The kept result answers the generation each time, whatever the client sent after it."""
    opening = {"model": "prompt", "durability": STRICT, "action": pb.DISCONNECT_ACTION_HOLD, "duration_s": 3.0}
    one = {"tokens": [5, 5], "mark": False, "kind": pb.OUTPUT_KIND_NONE, "size": 1}
    generate = {"max_tokens": 1, "min_tokens": 1, "seed": None, "with_position": True}
    script: list[tuple[int, str, float, dict[str, Any]]] = [
        (0, "open", 0.0, {"is_made": False, "outputs": False, "unattended": True, "rude": False, **opening}),
        (NATURE, "outage", 0.5, {"duration_s": 0.3, "replica": 0}),
        (0, "generate", 0.6, generate),
        (0, "feed", 0.6, {"with_position": False, **one}),
        (0, "resend", 0.2, {}),
        (0, "regenerate", 0.2, {}),
        (0, "regenerate", 0.2, {}),
        (0, "settle", 0.2, {}),
    ]

    async def act(world: World) -> None:
        await world.perform(
            [
                Action(actor, op, pause_s, args if actor == NATURE else {"k": 0, "slot": 0, **args})
                for actor, op, pause_s, args in script
            ]
        )
        sent = list(world.clients[0].all_streams[0].sent.values())
        reported = [(reason(one.answer), one.answer.position) for one in sent[1:]]
        assert reported == [("STORE_UNAVAILABLE", 0), ("fed", 3), *[("generated", 1)] * 3]

    play(act)

"""Both clients refuse wrong arguments in one sentence, and say what happened to a call that got no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from carousel import AsyncClient, Client, ConcurrentUseError, DeadlineExceededError, Frames, InvalidArgumentError
from carousel._answers import rpc_error
from carousel._requests import step_batch_message
from carousel.v1 import inference_pb2 as pb

from .fake_server import FakeServer


class ServerThatLosesTheFirstAnswer(FakeServer):
    """Opens a session on its first stream, which breaks before the answer."""

    def Stream(
        self, request_iterator: Iterator[pb.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse]:
        if not self.num_streams:
            self.num_streams = 1
            self.session.handle(next(request_iterator))
            context.abort(grpc.StatusCode.UNKNOWN, "Stream removed")
        yield from super().Stream(request_iterator, context)


@pytest.mark.usefixtures("without_delays")
def test_the_first_opening_of_a_batch_is_sent_again_when_its_answer_is_lost() -> None:
    with ServerThatLosesTheFirstAnswer() as server, Client(server.target) as client, client.batch("toy") as batch:
        assert batch.open("ab", timeout=5) == 0
        assert server.num_streams == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.sessions.rewind("s0", -1), "position = -1 must be 0 to"),
        (lambda c: c.sessions.rewind("s0", 1.5), "position must be an integer, not 1.5"),
        (lambda c: c.sessions.close(3), "session_id must be a string, not 3"),
        (lambda c: c.model(3), "model must be a string, not 3"),
        (lambda c: c.sessions.restore("str"), "snapshot must be bytes, not 'str'"),
        (lambda c: c.generate("toy", tmperature=1), "generate() got an unexpected keyword argument 'tmperature'"),
        (lambda c: c.generate_many("toy", ["a"], tmperature=1), "generate_many() got an unexpected keyword argument"),
        (lambda c: c.generate_many("toy", "gate"), "sources must be an iterable of sources, also for one source"),
        (lambda c: c.generate("toy", top_k=-1), "decoding.sampling.top_k = -1 must be 1 to"),
        (lambda c: c.generate("toy", max_tokens=-1), "decoding.max_tokens = -1 must be 1 to"),
        (lambda _: Client(5), "target must be a string, not 5"),  # type: ignore[arg-type]
        (lambda _: Client("localhost:1", timeout=-1), "timeout = -1 must be a number of seconds, 0 or more"),
        (lambda _: Client("localhost:1", max_message_bytes=-5), "max_message_bytes = -5 must be 1 to 2147483647"),
        (lambda _: Client("localhost:1", max_message_bytes=2**31), "max_message_bytes = 2147483648 must be 1 to"),
        (lambda _: Client("localhost:1", timeout=True), "timeout must be a number of seconds, not True"),
        (lambda _: Client("\ud800"), "target = '\\ud800' must be Unicode text"),
        (lambda c: c.generate("toy", temperature="1"), "decoding.sampling.temperature must be a number, not '1'"),
        (lambda c: c.generate("toy", top_p="1"), "decoding.sampling.top_p must be a number, not '1'"),
        (lambda c: c.generate("toy", repetition_penalty=[]), "decoding.repetition_penalty must be a number, not []"),
        (lambda c: c.generate("toy", beam_size=2, length_penalty=True), "length_penalty must be a number, not True"),
        (lambda c: c.generate("toy", log_probabilities="x"), "decoding.log_probabilities must be True or False, not"),
        (lambda c: c.generate("toy", "\ud800"), "source = '\\ud800' must be Unicode text, without surrogates"),
        (lambda c: c.generate("toy", ["a", "\ud800"]), "source.tokens.names[1] = '\\ud800' must be Unicode text"),
        (lambda c: c.session("\ud800"), "open.model = '\\ud800' must be Unicode text"),
        (
            lambda c: c.score("toy", None),
            "also for one target: [target], not None",
        ),
        (lambda c: c.score("toy", 5), "targets must be a list of sequences, also for one"),
        (lambda c: next(c.generate_many("toy", 5)), "sources must be an iterable of sources, not 5"),
        (lambda c: c.batch("toy").open_many(5), "sources must be an iterable of sources, not 5"),
        (lambda c: c.batch("toy").open(session_id=5), "session_id must be a string, not 5"),
        (lambda c: c.batch("toy").step([5], places=0), "places must be an iterable of places, not 0"),
        (lambda c: c.batch("toy").step([5], places="0"), "place must be an integer, not '0'"),
        (lambda c: c.batch("toy").step([5], places=[True]), "place must be an integer, not True"),
        (lambda c: c.batch("toy").close_session("0"), "place must be an integer, not '0'"),
        (lambda c: c.sessions.get_state("s0", "hidden", 5), "names[1] must be a string, not 5"),
        (lambda c: c.sessions.set_state("s0", 5), "tensors must be StateTensors, not 5"),
        (lambda _: Frames("a"), "size must be an integer, not 'a'"),  # type: ignore[arg-type]
        (lambda _: Frames(3).add(5), "samples must be an iterable of numbers, not 5"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(call: Callable[[Any], object], words: str) -> None:
    with Client("localhost:1") as client, pytest.raises((TypeError, InvalidArgumentError)) as refused:
        call(client)
    assert words in str(refused.value)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"target": ""}, InvalidArgumentError, "target = '' must be an address, such as 'localhost:50051'"),
        ({"token": "my\nsecret"}, InvalidArgumentError, "token must have only printable ASCII characters"),
        ({"token": "secr\xe9t"}, InvalidArgumentError, "token must have only printable ASCII characters"),
        ({"token": b"secret"}, TypeError, "token must be a string, not bytes"),
        ({"credentials": b"secret"}, TypeError, "credentials must be grpc.ChannelCredentials, not bytes"),
        ({"channel_options": 5}, TypeError, "channel_options must be pairs of a name and a value, not 5"),
        ({"channel_options": [("a",)]}, TypeError, "channel_options must be pairs of a name and a value, not [('a',)]"),
    ],
    ids=str,
)
def test_wrong_arguments_of_a_client_are_named_and_its_token_is_not_shown(
    client: type[Client | AsyncClient], given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as refused:
        client(**{"target": "localhost:1", **given})
    assert words in str(refused.value)
    assert "secr" not in str(refused.value)
    if isinstance(refused.value, InvalidArgumentError):
        assert (refused.value.reason, refused.value.field) == ("INVALID_FIELD", *given)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (None, "give tokens or features"),
        ([1, "a", 2], "step_batch.token_ids[1] must be an integer, not 'a'"),
        ([1, [2, 3], 4], "step_batch.token_ids[1] must be an integer, not [2, 3]"),
        ([[1], 2, [3]], "step_batch.token_ids[1] must be a sequence of token ids, as the first is, not 2"),
        ([[1], [2, None], [3]], "step_batch.token_ids[1][1] must be an integer, not None"),
        ([1, -2, 3], "step_batch.token_ids[1] = -2 must be 0 to 4294967295"),
    ],
)
def test_wrong_tokens_of_a_batch_are_named(tokens: Any, words: str) -> None:
    with pytest.raises((TypeError, InvalidArgumentError)) as refused:
        step_batch_message([1, 2, 3], tokens, [0, 0, 0], top_k=None, logits=False, outputs=True)
    assert words in str(refused.value)


def test_a_session_is_not_rewound_to_a_position_below_0(server: FakeServer) -> None:
    with (
        Client(server.target) as client,
        client.session("toy", "ab", on_disconnect="free") as session,
        pytest.raises(InvalidArgumentError, match="position = -1 must be 0 to"),
    ):
        session.rewind(-1)


def test_grpcs_own_deadline_has_a_reason_and_a_sentence() -> None:
    class Failure(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.DEADLINE_EXCEEDED

        def details(self) -> str:
            return "Deadline Exceeded"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    error = rpc_error(Failure())
    assert isinstance(error, DeadlineExceededError)
    assert (error.reason, error.message) == ("DEADLINE_EXCEEDED", "no answer came before the call's timeout")


async def test_wrong_sources_of_the_asyncio_client_are_named() -> None:
    async with AsyncClient("localhost:1") as client:
        with pytest.raises(TypeError, match="sources must be an iterable of sources, not 5"):
            await anext(client.generate_many("toy", 5))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="sources must be an iterable of sources, not 5"):
            await client.batch("toy").open_many(5)  # type: ignore[arg-type]


async def test_a_second_task_in_a_generation_gets_an_error(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        generation = client.generate("toy", "stall")
        assert [(await anext(generation)).text for _ in range(3)] == ["A", "B", "C"]
        first = asyncio.create_task(anext(generation))
        await asyncio.sleep(0)
        with pytest.raises(ConcurrentUseError, match="this generation is used by another task"):
            await anext(generation)
        await generation.aclose()
        await asyncio.gather(first, return_exceptions=True)

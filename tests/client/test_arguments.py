"""Both clients refuse arguments of a wrong type or value before they send anything. The error names the argument, its
value and what is expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carousel import AsyncClient, Client, InvalidArgumentError

from .fake_server import FakeServer
from .shells import AsyncioShell, BlockingShell, Shell

NAN = float("nan")
FEED = {"tokens": "A"}
OPEN = {"model": "toy"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"session_id": 5}, "session_id must be a string, not 5"),
        (
            {"tokens": 5.5},
            "feed.tokens or feed.token_ids must be names (str) or ids (int), one after the other, not 5.5",
        ),
        ({"tokens": {"A": 1}}, "feed.tokens or feed.token_ids must be names (str) or ids (int), one after the other,"),
        ({"tokens": b"A"}, "feed.tokens or feed.token_ids must be names (str) or ids (int), one after the other,"),
        ({"tokens": ["A", 1]}, "feed.tokens or feed.token_ids must be all names (str) or all ids (int), not ['A', 1]"),
        ({"tokens": True}, "feed.token_ids[0] must be an integer, not True"),
        ({"tokens": [None]}, "feed.token_ids[0] must be an integer, not None"),
        ({"features": "A"}, "feed.features must be vectors, one a step, [steps, features], or their numbers,"),
        ({"features": [None]}, "rows of numbers, not [None]"),
        ({"features": [10**400]}, "rows of numbers, not [1000"),
        ({"features": np.array(["A"])}, "not array(['A']"),
        ({"features": np.array([[None]])}, "numbers of 32 or 64 bits, not array([[None]]"),
        ({**FEED, "position": "1"}, "feed.position must be an integer, not '1'"),
        ({**FEED, "position": True}, "feed.position must be an integer, not True"),
        ({**FEED, "top_k": 1.5}, "feed.outputs.top_k must be an integer, not 1.5"),
        ({**FEED, "outputs": None}, "outputs must be True or False, not None"),
        ({**FEED, "every_position": "yes"}, "feed.outputs.every_position must be True or False, not 'yes'"),
        ({**FEED, "mark": "yes"}, "feed.mark must be True or False, not 'yes'"),
        ({**FEED, "logits": "yes"}, "logits must be True or False, not 'yes'"),
        ({**FEED, "trace": 1}, "trace must be True or False, not 1"),
        ({"close": "yes"}, "close must be True or False, not 'yes'"),
        ({"timeout": "1"}, "timeout must be a number of seconds, not '1'"),
        ({"timeout": NAN}, "timeout = nan must be a number of seconds, 0 or more"),
        ({"timeout": -1}, "timeout = -1 must be a number of seconds, 0 or more"),
        ({**FEED, "timeout": -0.5}, "timeout = -0.5 must be a number of seconds, 0 or more"),
        ({"resume_timeout": -1}, "resume_timeout = -1 must be a number of seconds, 0 or more"),
        ({**FEED, "timeout": "1"}, "timeout must be a number of seconds, not '1'"),
        ({"resume_timeout": None}, "resume_timeout must be a number of seconds, not None"),
        ({**FEED, "resume_timeout": "1"}, "resume_timeout must be a number of seconds, not '1'"),
        ({"model": 5}, "open.model must be a string, not 5"),
        ({**OPEN, "source": 5}, "open.source must be text, tokens by name (str) or by id (int), or vectors, not 5"),
        ({**OPEN, "version": "1"}, "open.version must be an integer, not '1'"),
        ({**OPEN, "variant": None}, "open.variant must be a string, not None"),
        ({**OPEN, "constants": 5}, "open.constants must be a dict of values by name, not 5"),
        ({**OPEN, "first": "yes"}, "first must be True or False, not 'yes'"),
        ({**OPEN, "logits": "yes"}, "logits must be True or False, not 'yes'"),
        ({**OPEN, "hold_s": -1}, "hold_s = -1 must be a number of seconds, 0 or more"),
        ({**OPEN, "on_disconnect": "FREE"}, "on_disconnect = 'FREE' must be 'free', 'hold' or 'keep'"),
        ({**OPEN, "on_disconnect": "unspecified"}, "on_disconnect = 'unspecified' must be 'free', 'hold' or 'keep'"),
        ({**OPEN, "durability": "Strict"}, "durability = 'Strict' must be 'none', 'checkpoint' or 'strict'"),
        ({**OPEN, "on_disconnect": None}, "on_disconnect = None must be 'free', 'hold' or 'keep'"),
        ({**OPEN, "durability": 5}, "durability = 5 must be 'none', 'checkpoint' or 'strict'"),
        ({**OPEN, "hold_s": "1"}, "hold_s must be a number of seconds, not '1'"),
        ({**OPEN, "hold_s": float("inf")}, "hold_s = inf must be at most 3.15576e+11 seconds"),
    ],
    ids=str,
)
async def test_invalid_arguments_of_step_are_named(
    shell: Shell, server: FakeServer, given: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, InvalidArgumentError)) as refused:
        await shell.step(**{"session_id": "mine", **given})
    assert words in str(refused.value)
    assert not server.steps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"session_id": None}, "session_id must be a string, not None"),
        ({"timeout": "1"}, "timeout must be a number of seconds, not '1'"),
        ({"timeout": NAN}, "timeout = nan must be a number of seconds"),
    ],
    ids=str,
)
async def test_invalid_arguments_of_watch_are_named(
    shell: Shell, server: FakeServer, given: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, InvalidArgumentError)) as refused:
        await shell.watch(**{"session_id": "mine", **given})
    assert words in str(refused.value)
    assert not server.metadata


async def resume(shell: Shell, session_id: Any, **options: Any) -> None:
    if isinstance(shell, BlockingShell):
        shell.client.resume(session_id, **options)
    else:
        assert isinstance(shell, AsyncioShell)
        await shell.client.resume(session_id, **options)


async def test_invalid_arguments_of_sessions_are_named(shell: Shell, server: FakeServer) -> None:
    for name, value, words in (
        ("model", 5, "open.model must be a string, not 5"),
        ("session_id", 5, "session_id must be a string, not 5"),
        ("unattended", "yes", "open.unattended must be True or False, not 'yes'"),
        ("resume_timeout", "1", "resume_timeout must be a number of seconds, not '1'"),
        ("timeout", "1", "timeout must be a number of seconds, not '1'"),
    ):
        given: dict[str, Any] = {"on_disconnect": "hold", name: value}
        with pytest.raises(TypeError) as refused:
            await shell.open(**given)
        assert str(refused.value) == words
    with pytest.raises(TypeError, match="session_id must be a string, not 5"):
        await resume(shell, 5)
    with pytest.raises(TypeError, match="timeout must be a number of seconds, not '1'"):
        await resume(shell, "mine", timeout="1")
    with pytest.raises(TypeError, match="resume_timeout must be a number of seconds, not '1'"):
        await resume(shell, "mine", resume_timeout="1")
    assert not server.num_streams


async def test_invalid_arguments_of_one_call_methods_are_named() -> None:
    for client in (Client("localhost:1"), AsyncClient("localhost:1")):
        with pytest.raises(TypeError, match=r"^model must be a string, not 5$"):
            client.generate(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^variant must be a string, not None$"):
            client.generate("toy", variant=None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^source must be text, tokens by name .* not 5$"):
            client.generate("toy", 5)  # type: ignore[arg-type]
    with Client("localhost:1") as blocking, pytest.raises(TypeError, match=r"^with_end must be True or False, not 1$"):
        blocking.score("toy", ["A"], with_end=1)  # type: ignore[arg-type]


def test_wrong_times_are_refused_before_anything_is_sent(server: FakeServer) -> None:
    with Client(server.target) as client:
        with pytest.raises(TypeError, match="resume_timeout must be a number of seconds, not '1'"):
            client.batch("toy", resume_timeout="1")  # type: ignore[arg-type]
        client.models()  # connects
        with pytest.raises(TypeError, match="resume_timeout must be a number of seconds, not '1'") as refused:
            client.generate("toy", "stall", resume_timeout="1")  # type: ignore[arg-type]
        with client.generate("toy", "ab") as generation:
            assert next(generation).text == "A"
        assert len(server.decodings) == 1, refused  # the traceback keeps a call that was sent from being dropped
        assert server.num_streams == 0
        with client.batch("toy") as batch:
            with pytest.raises(TypeError, match="timeout must be a number of seconds, not '1'"):
                batch.step([], timeout="1")  # type: ignore[arg-type]
            with pytest.raises(LookupError):
                batch.receive(timeout=5)


async def test_numpys_booleans_and_numbers_are_taken(shell: Shell, server: FakeServer) -> None:
    await shell.step("mine", np.array([2, 3]), position=np.int64(4), mark=np.True_, timeout=np.float32(9.0))
    (request,) = server.steps
    assert (list(request.feed.token_ids), request.feed.position, request.feed.mark) == ([2, 3], 4, True)

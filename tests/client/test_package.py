"""What the package gives a program: public names, imports, errors, and its behaviour at exit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import carousel
from carousel import (
    CarouselError,
    PositionMismatchError,
    ResourceExhaustedError,
    SessionClosedError,
    Token,
    ValueToken,
    _answers,
)
from carousel import errors as errors_module
from carousel._session_errors import session_closed
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

from .fake_server import FakeServer

ROOT = Path(__file__).parents[2]


def all_errors(root: type[CarouselError] = CarouselError) -> list[type[CarouselError]]:
    return [root] + [leaf for kind in root.__subclasses__() for leaf in all_errors(kind)]


def run(code: str) -> str:
    """Runs a program in a new interpreter. It must end within 20 s and write nothing to standard error. Returns its
    output."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert carousel.__all__ == sorted(carousel.__all__)
    public = {n for n, v in vars(carousel).items() if isinstance(v, type) and not n.startswith("_")}
    assert public == set(carousel.__all__)


def test_the_package_needs_grpc_and_protobuf_alone() -> None:
    code = (
        "import sys, grpc, google.protobuf; before = set(sys.modules); import carousel;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names));"
        "print(*[name for name in sys.modules if name.startswith('google.')])"
    )
    packages, modules = run(code).splitlines()
    assert set(packages.split()) <= {"carousel", "google", "grpc"}
    assert all(
        name.startswith("google.protobuf") or name in {"google._upb", "google._upb._message"}
        for name in modules.split()
    )


def test_the_first_example_of_the_package_runs(server: FakeServer) -> None:
    assert carousel.__doc__ is not None
    example = carousel.__doc__.split("\n\n", 1)[1].split("`AsyncClient`")[0]
    example = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    example = example.replace("localhost:50051", server.target).replace("g2p-en", "toy").replace('["K"]', '["A"]')
    assert run(example).split() == ["A", "B", "C", "D", "A"]


def test_a_program_that_closes_nothing_ends_silently_and_leaves_no_call(server: FakeServer) -> None:
    """At its end the interpreter stops gRPC's threads wherever they are. What then needs one of them waits forever."""
    server.events = [pb.WatchResponse(position=1)]
    code = f"""if True:
        import atexit, gc, threading
        from tests.waiting import wait_until

        def has_no_call():
            return not any(type(one).__name__.endswith("Rendezvous") for one in gc.get_objects())

        atexit.register(lambda: wait_until(has_no_call))  # runs after the client's own
        from carousel import CarouselError, Client

        def suspended():
            with Client({server.target!r}) as client, client.session("toy", "ab") as session:
                yield session.feed("A").position

        class Closing:
            def __init__(self, *closed):
                self.closed = closed

            def __del__(self):
                for one in self.closed:
                    one.close()

        client = Client({server.target!r})
        session = client.session("toy", "ab")
        session.feed("A")
        closing = Closing(session, client)
        others = [suspended(), client.generate("toy", "stall"), client.generate_many("toy", ["ab", "ab"])]
        others = [iter(one) for one in others]
        for one in others:
            next(one)
        try:
            next(client.generate("unknown", "ab"))
        except CarouselError as error:
            kept = error
        begun = threading.Event()
        threading.Thread(target=lambda: [begun.set() for event in client.watch("s")], daemon=True).start()
        begun.wait()
    """
    assert run(code) == ""


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    assert errors_module.__doc__ is not None
    drawn = [word for word in errors_module.__doc__.split() if word.endswith("Error")][: len(all_errors())]
    assert sorted(drawn) == sorted(kind.__name__ for kind in all_errors())


@pytest.mark.parametrize("kind", all_errors())
def test_errors_survive_pickling_and_copying(kind: type[CarouselError]) -> None:
    facts = {"position": "3", "close_reason": "idle"}
    error = kind("m", reason="R", field="f", metadata=facts, retry_delay=timedelta(seconds=1))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert (str(again), again.code) == ("m [R]", kind.code)
    if isinstance(error, PositionMismatchError):
        assert error.expected_position == 3
    if isinstance(error, SessionClosedError):
        assert (error.position, error.close_reason) == (3, carousel.CloseReason.IDLE)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_becomes_an_error_that_has_it(code: grpc.StatusCode) -> None:
    error = _answers.error(error_pb2.Error(code=code.value[0], message="m"))
    assert error.code is code
    assert type(error).code in {code, grpc.StatusCode.UNKNOWN}
    assert error.retry_delay is None
    assert str(error) == "m"


def test_a_code_that_nobody_knows_is_unknown() -> None:
    assert _answers.error(error_pb2.Error(code=99)).code is grpc.StatusCode.UNKNOWN


def test_an_error_keeps_what_the_server_sent() -> None:
    message = error_pb2.Error(code=8, message="full", reason="QUEUE_FULL", field="feed", metadata={"limit": "4"})
    message.retry_delay.FromMilliseconds(250)
    error = _answers.error(message)
    assert isinstance(error, ResourceExhaustedError)
    assert (error.field, error.metadata, error.retry_delay) == ("feed", {"limit": "4"}, timedelta(milliseconds=250))


def test_values_of_enums_that_are_newer_than_the_client_are_unspecified() -> None:
    assert _answers.close_reason(99) is carousel.CloseReason.UNSPECIFIED
    assert _answers.close_reason(pb.CLOSE_REASON_SHUTDOWN) is carousel.CloseReason.SHUTDOWN


def test_old_names_still_work_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match=r"carousel\.BatchStep is now carousel\.StepBatchResult"):
        assert carousel.BatchStep is carousel.StepBatchResult
    with pytest.raises(AttributeError, match="Nothing"):
        _ = carousel.Nothing


def test_a_value_token_is_a_token_and_a_tuple_of_values() -> None:
    token = ValueToken((1.5, -2.0))
    assert isinstance(token, Token)
    assert (token.id, token.text, token.log_probability, token.values) == (0, "1.5 -2", None, (1.5, -2.0))
    first, second = token
    assert (first, second, token[1], token[:1], len(token)) == (1.5, -2.0, -2.0, (1.5,), 2)
    assert token == (1.5, -2.0) == token
    assert token == ValueToken((1.5, -2.0)) != ValueToken((1.5,))
    assert token != Token(0, "1.5 -2")
    assert hash(token) == hash((1.5, -2.0))
    assert pickle.loads(pickle.dumps(token)) == copy.copy(token) == token
    assert repr(token) == "ValueToken((1.5, -2.0))"


def test_every_reason_why_a_session_ends_is_told_in_words() -> None:
    for value in carousel.CloseReason:
        error = session_closed("s", value, 3)
        assert error.close_reason is value
        assert error.message.startswith(f"session 's' was closed ({value}) at position 3: ")
    aged = session_closed("s", carousel.CloseReason.MAX_AGE, 3)
    assert aged.message.endswith("at position 3: it reached the age that the server allows")

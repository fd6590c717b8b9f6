"""After any actions of a program and losses of its connection, its session has consumed exactly what the program
did."""

from __future__ import annotations

import time
from random import Random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel import CarouselError, DeadlineExceededError, FailedPreconditionError, PositionMismatchError, Token
from carousel import _exchange_runner as module
from carousel._deadline import Deadline
from carousel._generation import GenerationState
from carousel._protocol import SessionProtocol
from carousel._reconnecting_stream import ReconnectingStream
from carousel._recovery import Recovery
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub

from .model_server import ModelServer, ModelStream, chosen

LAST = "last"
"""Rewinds to the newest mark; any other value rewinds to the oldest one."""

operations = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.lists(st.integers(0, 50), min_size=1, max_size=4), st.booleans()),
        st.tuples(st.just("generate"), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 8)), st.booleans()),
        st.tuples(st.just("rewind"), st.sampled_from(["first", LAST])),
        st.tuples(st.sampled_from(["fork", "crash", "cut", "store"])),
    ),
    max_size=14,
)


class Program:
    """A program with one session, and the tokens that it believes the session has consumed."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.believed: list[int] = []
        self.marks: dict[int, list[int]] = {}
        self._num_forks = 0
        opening = pb.Open(model="toy", on_disconnect=pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD))
        self._connect("s", Recovery(opening, 60.0))
        num_faults, server.num_faults = server.num_faults, 0  # the client does not retry an opening
        self.stream.run(self.protocol.open(opening), Deadline(None))
        server.num_faults = num_faults

    def do(self, operation: tuple[object, ...]) -> None:
        name, *arguments = operation
        getattr(self, f"_{name}")(*arguments)

    def check(self) -> None:
        """Brings the session to the program's position. The session must have consumed what the program believes."""
        self.server.num_faults = 0
        self.stream.run(self.protocol.synchronize(), Deadline(None))
        self.generated_to(self.protocol.position)
        session = self.server[self.protocol.id]
        assert session.consumed == self.believed
        assert self.protocol.position == len(self.believed)
        assert {at: session.marks.get(at) for at in self.marks} == self.marks

    def _connect(self, session_id: str, recovery: Recovery) -> None:
        self.protocol = SessionProtocol(session_id, recovery)
        self.stream = ReconnectingStream(cast(InferenceStub, self.server), self.protocol)

    def _feed(self, tokens: list[int], mark: bool) -> None:
        step = self.stream.run(self.protocol.feed(pb.Feed(token_ids=tokens, mark=mark)), Deadline(None))
        self.generated_to(step.position - len(tokens))
        self.believed += tokens
        assert step.position == len(self.believed)
        if mark:
            self.marks[step.position] = list(self.believed)

    def _generate(self, limit: int, num_read: int | None, is_left: bool) -> None:
        """Generates. num_read: how many tokens to read; None: all. is_left: whether the program then closes the
        generation; otherwise the next call ends it."""
        decoding = pb.Decoding(max_tokens=limit)
        state = GenerationState(decoding)
        taken = 0
        while num_read is None or taken < num_read:
            while not state.is_ready:
                self.stream.run(self.protocol.pull(state, decoding), Deadline(None))
            token = state.take()
            if token is None:
                break
            if not taken:
                self.generated_to(self.start_of(state))
            assert cast(Token, token).id == chosen(self.believed)
            self.believed.append(cast(Token, token).id)
            taken += 1
        if is_left:
            self.stream.run(self.protocol.leave(state), Deadline(None))
            self.generated_to(self.protocol.position)

    def start_of(self, state: GenerationState) -> int:
        """Returns the position at which a generation began whose first token was just taken."""
        return state.position - state.num_unread - 1

    def generated_to(self, position: int) -> None:
        """Adds the tokens that the session generated until its last call ended the generation. The model's rule gives
        them."""
        assert len(self.believed) <= position
        while len(self.believed) < position:
            self.believed.append(chosen(self.believed))

    def _rewind(self, which: str) -> None:
        if not self.marks:
            with pytest.raises(FailedPreconditionError):
                self._rewind_to(10_000)
            return
        position = max(self.marks) if which == LAST else min(self.marks)
        self._rewind_to(position)
        assert self.protocol.position == position
        self.believed = list(self.marks[position])
        self.marks = {at: state for at, state in self.marks.items() if at <= position}

    def _rewind_to(self, position: int) -> None:
        self.stream.rewind(position, lambda: self.server.rewind(self.protocol.id, position), Deadline(None))

    def _fork(self) -> None:
        self._num_forks += 1
        name, num_faults, self.server.num_faults = f"fork{self._num_forks}", self.server.num_faults, 0
        self.stream.run(self.protocol.synchronize(), Deadline(None))
        self.generated_to(self.protocol.position)
        self.server.fork(self.protocol.id, name)
        self._connect(name, Recovery(None, 60.0))
        self.stream.run(self.protocol.open(pb.Open(resume=pb.Resume())), Deadline(None))
        self.server.num_faults = num_faults

    def _crash(self) -> None:
        self.server.crash()

    def _cut(self) -> None:
        self.server.cut()

    def _store(self) -> None:
        self.server.store(self.protocol.id)


@pytest.fixture(autouse=True, scope="module")
def in_memory() -> object:
    """Streams run in memory, and attempts follow each other without delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Stream", ModelStream)
        patch.setattr("carousel._exchange_runner.time.sleep", lambda _: None)
        yield


@settings(max_examples=60, deadline=None)
@given(operations=operations, seed=st.integers(0, 2**32), num_faults=st.integers(0, 8))
def test_a_session_has_consumed_what_its_program_did(
    operations: list[tuple[object, ...]], seed: int, num_faults: int
) -> None:
    program = Program(ModelServer(Random(seed), num_faults))
    for operation in operations:
        program.do(operation)
    program.check()
    assert set(program.server.versions[1:]) <= {7}  # it is opened again with its own version


@settings(max_examples=40, deadline=None)
@given(operations=operations, seed=st.integers(0, 2**32), num_faults=st.integers(0, 4), when=st.integers(0, 10))
def test_a_session_that_another_caller_rewinds_is_never_fed_a_mixture(
    operations: list[tuple[object, ...]], seed: int, num_faults: int, when: int
) -> None:
    """The program either gets an error with the position, or the session is as the program believes."""
    program = Program(ModelServer(Random(seed), num_faults))
    for index, operation in enumerate([("feed", [1, 2], True), ("feed", [3], False), *operations]):
        try:
            if operation[0] == "fork":  # a fork asks for the position and would accept it
                continue
            if index == when + 2:
                num_faults, program.server.num_faults = program.server.num_faults, 0
                program.stream.run(program.protocol.synchronize(), Deadline(None))
                program.generated_to(program.protocol.position)
                marks = list(program.server[program.protocol.id].marks)
                if marks:
                    program.server.rewind(program.protocol.id, min(marks))
                program.server.num_faults = num_faults
            program.do(operation)
        except PositionMismatchError as error:
            session = program.server.find(program.protocol.id)
            assert session is not None
            assert error.expected_position == program.protocol.position  # noqa: PT017  # the error need not be raised
            program.believed, program.marks = list(session.consumed), dict(session.marks)
            if len(program.believed) != error.expected_position:  # the server has crashed in between
                return
        except CarouselError as error:
            # the error need not be raised
            assert error.reason == "HISTORY_LOST" or isinstance(error, FailedPreconditionError)  # noqa: PT017
            return
    program.marks.clear()
    try:
        program.do(("feed", [5], False))
    except CarouselError:
        return
    program.check()


def test_the_history_survives_a_call_that_ran_out_of_time_in_an_outage() -> None:
    server = ModelServer(Random(1))
    program = Program(server)
    program.do(("feed", [1, 2, 3], True))
    server.crash()
    server.num_faults = 10**6
    server.breaks = lambda: True  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceededError):
        program.stream.run(program.protocol.feed(pb.Feed(token_ids=[4])), Deadline(0.05))
    assert not program.protocol.is_closed
    del server.breaks
    server.num_faults = 0
    program.do(("feed", [4], False))
    program.check()


def test_the_tests_do_not_wait_between_attempts() -> None:
    began_s = time.monotonic()
    program = Program(ModelServer(Random(3), 8))
    for _ in range(20):
        program.do(("feed", [1], False))
    assert time.monotonic() - began_s < 5

"""Sessions through all events, beside a plain list of tokens.

Open, feed, generate, cancel, mark, rewind, fork, snapshot, restore, detach, resume, spill, checkpoint, crash, move to
another server, close: in any order, a session's outputs equal those of a plain loop over the graph after the same
tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from service.engine.decoding import Decoding
from service.engine.engine import Engine
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.limits import EngineLimits
from service.engine.results import Failed, Fed, Generated, Result
from service.errors import SessionNotFoundError
from service.repository.bundle import Bundle, load_bundle
from service.sessions.limits import SessionLimits
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy
from service.sessions.request import Reply, Request
from service.sessions.served import Served
from service.sessions.service import SessionService
from service.sessions.session import CloseReason, Session
from service.sessions.snapshot import Codec
from service.sessions.storage import Storage
from service.sessions.stores.memory import MemoryStore, SharedRecords
from tests.domain import ids
from tests.reference import ReferenceSession
from tests.sessions.test_registry import Events
from tests.waiting import until

LOGITS = OutputSpec(OutputKind.LOGITS)
TOKENS = st.lists(st.integers(0, 16), min_size=1, max_size=5)
NUM_SLOTS = 3
T = TypeVar("T")


def only_if(holds: Callable[[Any], object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Lets a rule do nothing unless something holds.

    A `precondition` must be the same whenever an example is played again. What holds here depends on time: a crash may
    come before or after a session is stored.
    """

    def decorated(act: Callable[..., None]) -> Callable[..., None]:
        @wraps(act)
        def act_if(machine: Any, **drawn: Any) -> None:
            if holds(machine):
                act(machine, **drawn)

        return act_if

    return decorated


class Server:
    """Sessions over one engine with few slots, and a store that the servers share."""

    def __init__(self, bundle: Bundle, shared: SharedRecords) -> None:
        loop = asyncio.get_running_loop()
        # few rows, so that starting a server warms few sizes of batches up
        limits = EngineLimits(num_slots=NUM_SLOTS, num_forks=8, max_batch_rows=NUM_SLOTS)
        self.engine = Engine(bundle, limits, Events(), loop, lambda error: None)
        self.engine.start()
        self.served = Served(bundle, self.engine)
        self.store = MemoryStore(shared)
        self.storage = Storage(self.store, Codec(b"a key of sixteen"), Events(), heartbeat_s=0.005)
        self.sessions = SessionService(
            self.storage,
            SessionLimits(max_sessions=50, generation_window=4),
            Events(),
            find=lambda model, version, variant: self.served,
            interval_s=1e6,
            num_tokens=1_000_000,
            patience_s=5.0,
        )
        self.sessions.start()

    async def crash(self) -> None:
        """Ends the server as a kill does: it stores nothing more, and its lease expires."""
        await self.sessions.stop(0.0)
        await asyncio.to_thread(self.engine.stop)


class Lives(RuleBasedStateMachine):
    """Runs random events on two servers.

    tokens: what each session has consumed.
    marks: the positions of each session's marks.
    homes: the server of each session.
    durable: sessions that are stored.
    """

    served_bundle: Bundle
    folder: Path

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.shared = SharedRecords()
        self.servers = [self.run(self._server()) for _ in range(2)]
        self.tokens: dict[str, list[int]] = {}
        self.marks: dict[str, set[int]] = {}
        self.homes: dict[str, int] = {}
        self.durable: set[str] = set()
        self.snapshots: list[tuple[bytes, list[int]]] = []
        self.close_reasons: set[str] = set()
        self.last = 0
        for server, durability in ((0, Durability.CHECKPOINT), (1, None)):  # most rules do nothing without a session
            self.open(server, durability)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def _server(self) -> Server:
        return Server(self.served_bundle, self.shared)

    def pick(self, number: int) -> str:
        return sorted(self.tokens)[number % len(self.tokens)]

    def new_name(self) -> str:
        self.last += 1
        return f"s{self.last}"

    def knows(self, name: str, tokens: list[int], home: int, *, durable: bool, marks: set[int] | None = None) -> None:
        self.tokens[name], self.homes[name], self.marks[name] = list(tokens), home, set(marks or ())
        if durable:
            self.durable.add(name)

    async def _session(self, name: str) -> Session:
        """Returns the session, after it has a slot."""
        sessions = self.servers[self.homes[name]].sessions
        session = sessions.directory.get(name)
        assert session is not None, f"{name} is not there"
        await sessions.spill.act(session, lambda: None)
        return session

    def _request(self, session: Session | None, reply: Reply) -> Request:
        return Request(session, 1, reply, 0.0)

    async def _feed(self, name: str, tokens: list[int], *, mark: bool = False) -> None:
        session = await self._session(name)
        answered: asyncio.Future[Result] = self.loop.create_future()
        request = self._request(session, lambda _, result: answered.set_result(result))
        self.servers[self.homes[name]].sessions.requests.feed(
            request, len(self.tokens[name]), tokens, LOGITS, has_mark=mark
        )
        result = await answered
        assert isinstance(result, Fed), result
        self.tokens[name] += tokens
        assert result.position == len(self.tokens[name])
        assert result.outputs[0].logits is not None
        assert result.outputs[0].logits.tolist() == expected_logits(self.folder, self.tokens[name])
        if mark:
            self.marks[name].add(len(self.tokens[name]))

    @rule(server=st.integers(0, 1), durability=st.sampled_from([None, Durability.CHECKPOINT, Durability.STRICT]))
    def open(self, server: int, durability: Durability | None) -> None:
        async def act() -> None:
            sessions, name = self.servers[server].sessions, self.new_name()
            answered: asyncio.Future[Result] = self.loop.create_future()
            new = sessions.opening.prepare(
                self.servers[server].served,
                name,
                None,
                None,
                request=self._request(None, lambda _, result: answered.set_result(result)),
                on_ended=lambda session, reason: None,
                policy=SessionPolicy() if durability is None else SessionPolicy(durability, OnDisconnect.HOLD, 1000.0),
            )
            sessions.opening.begin(new)
            assert not isinstance(await answered, Failed)
            self.knows(name, [], server, durable=durability is not None)

        self.run(act())

    @rule(number=st.integers(0, 9), tokens=TOKENS, mark=st.booleans())
    @only_if(lambda self: self.tokens)
    def feed(self, number: int, tokens: list[int], mark: bool) -> None:
        self.run(self._feed(self.pick(number), tokens, mark=mark))

    @rule(number=st.integers(0, 9), count=st.integers(1, 12), cut=st.integers(1, 12))
    @only_if(lambda self: self.tokens)
    def generate(self, number: int, count: int, cut: int) -> None:
        """Generates greedily, and cancels after `cut` tokens."""

        async def act() -> None:
            name = self.pick(number)
            sessions, session = self.servers[self.homes[name]].sessions, await self._session(name)
            results: asyncio.Queue[tuple[Any, Result]] = asyncio.Queue()
            asked = self._request(session, lambda request, result: results.put_nowait((request, result)))
            sessions.generations.generate(asked, len(self.tokens[name]), Decoding(count), field="generate.decoding")
            reference = ReferenceSession(self.folder)
            for token in self.tokens[name]:
                reference.step(token)
            expected = reference.generate(count)
            found: list[int] = []
            while True:
                request, result = await results.get()
                if isinstance(result, Failed):
                    assert result.position == len(self.tokens[name]) + len(found)
                    break
                assert isinstance(result, Generated)
                found += ids(result.token_ids)
                request.granted(len(result.token_ids), result.position)
                if result.finish_reason is not None:
                    break
                if len(found) >= cut:
                    sessions.requests.cancel(session, lambda count, position, error: None)
            assert found == expected[: len(found)]
            self.tokens[name] += found

        self.run(act())

    @rule(number=st.integers(0, 9), which=st.integers(0, 9))
    @only_if(lambda self: any(self.marks.values()))
    def rewind(self, number: int, which: int) -> None:
        name = sorted(name for name in self.marks if self.marks[name])[number % sum(map(bool, self.marks.values()))]
        position = sorted(self.marks[name])[which % len(self.marks[name])]
        self.run(self.servers[self.homes[name]].sessions.admin.rewind(name, position))
        self.tokens[name] = self.tokens[name][:position]
        self.marks[name] = {mark for mark in self.marks[name] if mark <= position}

    @rule(number=st.integers(0, 9))
    @only_if(lambda self: self.tokens)
    def fork(self, number: int) -> None:
        name, fork = self.pick(number), self.new_name()
        self.run(self.servers[self.homes[name]].sessions.admin.fork(name, fork))
        self.knows(fork, self.tokens[name], self.homes[name], durable=name in self.durable, marks=self.marks[name])

    @rule(number=st.integers(0, 9))
    @only_if(lambda self: self.tokens)
    def snapshot(self, number: int) -> None:
        name = self.pick(number)
        data, position = self.run(self.servers[self.homes[name]].sessions.admin.snapshot(name))
        assert position == len(self.tokens[name])
        self.snapshots.append((data, list(self.tokens[name])))

    @rule(which=st.integers(0, 9), server=st.integers(0, 1))
    @only_if(lambda self: self.snapshots)
    def restore(self, which: int, server: int) -> None:
        """Restores a snapshot under another name. The new session is stored only if the snapshot's policy says so."""
        data, tokens = self.snapshots[which % len(self.snapshots)]
        name = self.new_name()
        session = self.run(self.servers[server].sessions.resume.restore(data, name, None))
        durable = session.policy.durability is not Durability.NONE
        self.knows(name, tokens, server, durable=durable, marks=set(session.persistence.marks))

    @rule(server=st.integers(0, 1))
    def checkpoint(self, server: int) -> None:
        async def act() -> None:
            sessions = self.servers[server].sessions
            for session in sessions.directory:
                sessions.checkpoints.hasten(session)
            held = [session.persistence for session in sessions.directory]
            await until(lambda: not any(one.is_dirty or one.is_writing for one in held))

        self.run(act())

    @rule(number=st.integers(0, 9), server=st.integers(0, 1))
    @only_if(lambda self: self.durable & set(self.tokens))
    def resume(self, number: int, server: int) -> None:
        """Resumes on the same server, or on the other, which takes the session over. No token is lost."""
        names = sorted(self.durable & set(self.tokens))
        name = names[number % len(names)]
        session, _ = self.run(self.servers[server].sessions.resume.resume(name, lambda session, reason: None))
        assert session.position == len(self.tokens[name])
        self.homes[name] = server

    @rule(server=st.integers(0, 1))
    def crash(self, server: int) -> None:
        """A client would feed again what was not stored; this test forgets those tokens instead."""

        async def act() -> None:
            await self.servers[server].crash()
            self.servers[server] = Server(self.served_bundle, self.shared)
            for name in sorted(name for name, home in self.homes.items() if home == server):
                stored = None
                if name in self.durable:
                    try:
                        sessions = self.servers[server].sessions
                        session, is_here = await sessions.resume.resume(name, lambda session, reason: None)
                        assert not is_here
                        stored = session.position
                    except SessionNotFoundError as error:
                        self.close_reasons.add(str(error.facts.get("close_reason")))
                if stored is None:
                    del self.tokens[name], self.homes[name], self.marks[name]
                    continue
                assert stored <= len(self.tokens[name]) or self.marks[name]
                self.tokens[name] = self.tokens[name][:stored]
                self.marks[name] = set(session.persistence.marks)
                await self._feed(name, [5])

        self.run(act())

    @rule(number=st.integers(0, 9))
    @only_if(lambda self: self.tokens)
    def close(self, number: int) -> None:
        async def act() -> None:
            name = self.pick(number)
            sessions = self.servers[self.homes[name]].sessions
            session = sessions.directory.get(name)
            assert session is not None
            sessions.registry.close(session, CloseReason.CLIENT, notify=False)
            with pytest.raises(SessionNotFoundError, match="was closed by a client"):
                await sessions.resume.resume(name, lambda session, reason: None)
            del self.tokens[name], self.homes[name], self.marks[name]

        self.run(act())

    def teardown(self) -> None:
        if not hasattr(self, "servers"):
            return
        assert self.close_reasons <= {"None", "lost"}
        for index, server in enumerate(self.servers):
            at_home = [name for name, home in self.homes.items() if home == index]
            assert sorted(session.id for session in server.sessions.directory) == sorted(at_home)
            self.run(self._few_slots(server, min(NUM_SLOTS, len(at_home))))
            self.run(server.crash())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def _few_slots(self, server: Server, most: int) -> None:
        await until(lambda: server.engine.statistics.slots_used <= most)


def expected_logits(folder: Path, tokens: list[int]) -> list[float]:
    reference = ReferenceSession(folder)
    for token in tokens:
        reference.step(token)
    assert reference.logits is not None
    return [float(value) for value in reference.logits]


@pytest.mark.parametrize("model", ["tiny-endless", "tiny-heads"])
def test_sessions_live_through_everything(tiny_repository: Path, model: str) -> None:
    class OfModel(Lives):
        served_bundle = load_bundle(tiny_repository / model / "1")
        folder = tiny_repository / model / "1"

    run_state_machine_as_test(OfModel, settings=settings(max_examples=14, stateful_step_count=40, deadline=None))

"""The results of a lane are those of a plain list of tokens, for any jobs and cancellations.

`plain.PlainSession` checks every result when it arrives; the tests here only submit jobs.
"""

from __future__ import annotations

from itertools import permutations, product

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.decoding import Decoding, FinishReason, Sampling
from service.engine.generations import resume_generation
from service.engine.jobs import EncodeJob, FeedJob, GenerateJob, Job, OutputKind, OutputSpec, StepBatchJob
from service.engine.results import Failed, Fed, Generated
from service.engine.scheduler import RowJob
from service.errors import EngineError, IllegalRequestError, PositionMismatchError, RequestCancelledError
from tests.engine.plain import BOS_ID, EOS_ID, VOCABULARY_SIZE, PlainSession, next_logits
from tests.engine.walks import World

NUM_SESSIONS = 3
WHICH = st.integers(0, NUM_SESSIONS - 1)


def tokens_of(drawn: bytes) -> list[int]:
    """Bytes are drawn in place of tokens: to draw many numbers takes longer than to run them."""
    return [byte % VOCABULARY_SIZE for byte in drawn]


TOKENS = st.binary(min_size=1, max_size=9).map(tokens_of)
OUTPUTS = st.sampled_from(
    [
        OutputSpec(kind, k if kind is OutputKind.TOP_K else 0, every)
        for kind in OutputKind
        if kind is not OutputKind.EMITTED
        for k in range(1, VOCABULARY_SIZE + 1)
        for every in (False, True)
    ]
)
SAMPLINGS = [Sampling(seed=seed, temperature=temperature) for seed in range(12) for temperature in (0.5, 5.0)]
DECODINGS = st.sampled_from(
    [
        Decoding(max_tokens, sampling, scored)
        for max_tokens in range(1, 7)
        for sampling in ([None] * len(SAMPLINGS) + SAMPLINGS)
        for scored in (False, True)
    ]
)
STARTS = st.sampled_from([None, None, 0, 0, 0, 0, 1, -1])
"""Where a job says that it starts, relative to where the session will be; None: the job has no start."""
PLACES = st.sampled_from([list(some) for count in (1, 2, 3) for some in permutations(range(NUM_SESSIONS), count)])
COUNTS = st.none() | st.sampled_from([list(some) for some in product(range(1, 5), repeat=NUM_SESSIONS)])
BATCH_STARTS = st.none() | st.sampled_from([list(some) for some in product([0, 0, 0, 0, 1, -1], repeat=NUM_SESSIONS)])
LOGITS = OutputSpec(OutputKind.LOGITS, every_position=True)


class StepperMachine(RuleBasedStateMachine):
    """Sessions that are fed, generate, are cancelled, fail and are closed, in any order."""

    @initialize(
        bos_id=st.sampled_from([None, BOS_ID]),
        limits=st.fixed_dictionaries(
            {"rows": st.integers(1, 4), "tokens": st.integers(1, 16), "chunk": st.integers(1, 5)}
        ),
        sources=st.lists(st.none() | TOKENS, min_size=NUM_SESSIONS, max_size=NUM_SESSIONS),
        outputs=st.none() | OUTPUTS,
        has_readout=st.booleans(),
    )
    def begin(
        self,
        bos_id: int | None,
        limits: dict[str, int],
        sources: list[list[int] | None],
        outputs: OutputSpec | None,
        has_readout: bool,
    ) -> None:
        self.world = World(bos_id=bos_id, has_readout=has_readout, **limits)
        for source in sources:
            self.world.open(source, outputs if bos_id is not None else None)

    @rule(which=WHICH, tokens=TOKENS, outputs=OUTPUTS, start=STARTS)
    def feed(self, which: int, tokens: list[int], outputs: OutputSpec, start: int | None) -> None:
        session = self.world.sessions[which]
        self.world.feed(session, tokens, outputs, self._start(session, start))

    @rule(which=WHICH, decoding=DECODINGS, window=st.integers(1, 3), start=STARTS)
    def generate(self, which: int, decoding: Decoding, window: int, start: int | None) -> None:
        session = self.world.sessions[which]
        self.world.generate(session, decoding, window, self._start(session, start))

    @rule(which=WHICH, beam_size=st.integers(1, 4), max_tokens=st.integers(1, 5), start=STARTS)
    def search(self, which: int, beam_size: int, max_tokens: int, start: int | None) -> None:
        session = self.world.sessions[which]
        self.world.search(session, beam_size, max_tokens, self._start(session, start))

    @rule(which=WHICH, continuations=st.lists(TOKENS, min_size=1, max_size=3), start=STARTS)
    def score(self, which: int, continuations: list[list[int]], start: int | None) -> None:
        session = self.world.sessions[which]
        self.world.score(session, continuations, self._start(session, start))

    @rule(
        places=PLACES,
        tokens=st.binary(min_size=12, max_size=12).map(tokens_of),
        counts=COUNTS,
        starts=BATCH_STARTS,
        outputs=OUTPUTS,
    )
    def step_batch(
        self,
        places: list[int],
        tokens: list[int],
        counts: list[int] | None,
        starts: list[int] | None,
        outputs: OutputSpec,
    ) -> None:
        sessions = [self.world.sessions[place] for place in places]
        if starts is not None:
            starts = [self._start(session, start) or 0 for session, start in zip(sessions, starts, strict=False)]
        counts = None if counts is None else counts[: len(sessions)]
        size = len(sessions) if counts is None else sum(counts)
        self.world.step_batch(sessions, tokens[:size], counts, starts, outputs._replace(every_position=False))

    @rule(count=st.integers(1, 3))
    def step_batches_of_all(self, count: int) -> None:
        """As a gateway sends them: batches of the same sessions, one after another."""
        for _ in range(count):
            self.world.step_batch(list(self.world.sessions), [1] * NUM_SESSIONS)

    @rule()
    def run(self) -> None:
        self.world.run()

    @rule(which=WHICH, count=st.integers(1, 4))
    def grant(self, which: int, count: int) -> None:
        job = self.world.sessions[which].generation
        if job is not None:
            self.world.grant(job, min(count, job.num_produced - job.num_granted))

    @rule(which=WHICH)
    def resume_needlessly(self, which: int) -> None:
        """A grant may arrive for a parked generation, but run after the generation has continued and parked again."""
        job = self.world.sessions[which].generation
        if job is not None:
            resume_generation(job.tag.lane, job)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        """A cancel does not end the encoding of a source."""
        session = self.world.sessions[which]
        encoding = [job for job in session.unanswered if isinstance(job, EncodeJob)]
        expected = [job for job in session.unanswered if not isinstance(job, StepBatchJob | EncodeJob)]
        assert self.world.cancel(session) >= len(expected)
        left = [job for job in session.unanswered if not isinstance(job, StepBatchJob)]
        assert left == encoding, "a step batch is answered when its other sessions are done, all else at once"

    @precondition(lambda self: len(self.world.scheduler) > 0)
    @rule()
    def fail(self) -> None:
        for session in self.world.fail(EngineError("the graph failed")):
            assert all(isinstance(job, StepBatchJob) for job in session.unanswered)

    @rule(which=WHICH)
    def close(self, which: int) -> None:
        self.world.close(self.world.sessions[which])
        assert all(isinstance(job, StepBatchJob) for job in self.world.sessions[which].unanswered)

    @invariant()
    def a_lane_at_rest_is_whole(self) -> None:
        """The state has consumed every token except the pending ones. The next logits or tokens to run are known."""
        for session in self._sessions():
            lane = session.lane
            if lane.active is None and not lane.is_closed:
                assert self.world.consumed(session) + lane.pending == session.history
                assert lane.position == len(session.tokens)
                if self.world.stepper.keeps_logits:
                    assert lane.pending or lane.next_logits is not None or not session.tokens
                else:
                    assert lane.next_logits is None, "what the state tells need not be kept"

    @invariant()
    def a_generation_is_at_most_its_window_ahead(self) -> None:
        for session in self._sessions():
            job = session.generation
            assert job is None or job.num_produced - job.num_granted <= job.window

    @invariant()
    def work_that_is_not_parked_waits_for_a_batch(self) -> None:
        for session in self._sessions():
            job = session.generation
            is_parked = job is not None and job.num_produced - job.num_granted == job.window
            if all(isinstance(one, FeedJob | GenerateJob | EncodeJob) for one in session.unanswered):
                active = session.lane.active
                waits = isinstance(active, RowJob) and active.ticket > 0
                assert waits == (bool(session.unanswered) and not is_parked)

    def teardown(self) -> None:
        """Every job has exactly one final result."""
        if hasattr(self, "world"):
            self.world.drain()
            assert self.world.run() is None
            assert not self.world.forks, "slots of beams and targets are given back"

    def _sessions(self) -> list[PlainSession]:
        return self.world.sessions if hasattr(self, "world") else []

    def _start(self, session: PlainSession, offset: int | None) -> int | None:
        if offset is None:
            return None
        ahead = sum(len(job.tokens) for job in session.unanswered if isinstance(job, FeedJob))
        return max(0, len(session.tokens) + ahead + offset)


StepperMachine.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # the phase takes longer than all others
)
TestStepper = StepperMachine.TestCase


def failures(session: PlainSession) -> list[type[Exception]]:
    return [type(result.error) for result in session.results if isinstance(result, Failed)]


def eos_soon(world: World) -> PlainSession:
    """Returns a session whose model chooses its end token next."""
    session = world.open()
    for first in range(VOCABULARY_SIZE):
        for second in range(VOCABULARY_SIZE):
            tokens = [first, second]
            if next_logits([*session.prefix, *tokens]).argmax() == EOS_ID:
                world.feed(session, tokens)
                world.drain()
                session.results.clear()
                return session
    raise AssertionError("no two tokens lead to the end")


def four_tokens() -> Decoding:
    """Returns a decoding that generates four tokens from the start of a session, without the end token."""
    for seed in range(1000):
        world = World()
        probe = world.open()
        decoding = Decoding(4, Sampling(temperature=50.0, seed=seed))
        world.generate(probe, decoding)
        world.drain()
        if len(probe.tokens) == 4:
            return decoding
    raise AssertionError("every seed meets the end token")


def test_a_feed_is_cut_into_chunks_and_answered_once() -> None:
    world = World(chunk=4)
    session = world.open()
    world.feed(session, [0, 1, 2, 3, 0, 1, 2, 3, 0], LOGITS)
    widths = []
    while session.unanswered:
        batch = world.run()
        assert batch is not None
        widths.append(batch.widths)
    assert widths == [[4], [4], [2]], "nine tokens and the start token"
    (result,) = session.results
    assert isinstance(result, Fed)
    assert [output.position for output in result.outputs] == list(range(1, 10))


def test_the_start_token_counts_for_no_position_and_gives_no_output_of_its_own() -> None:
    world = World(chunk=1)
    session = world.open()
    world.feed(session, [2], LOGITS, start=0)
    world.drain()
    (result,) = session.results
    assert isinstance(result, Fed)
    assert [output.position for output in result.outputs] == [1]


def test_opening_with_outputs_returns_the_first_outputs() -> None:
    world = World()
    session = world.open(outputs=LOGITS)
    world.drain()
    (result,) = session.results
    assert isinstance(result, Fed)
    assert [output.position for output in result.outputs] == [0]
    world.feed(session, [1], LOGITS, start=0)
    world.drain()
    assert world.consumed(session) == [BOS_ID, 1], "the start token is run once"


def test_an_output_may_be_wanted_after_the_last_token_alone() -> None:
    world = World(chunk=2)
    session = world.open()
    world.feed(session, [0, 1, 2], OutputSpec(OutputKind.NEXT_TOKEN))
    world.drain()
    (result,) = session.results
    assert isinstance(result, Fed)
    assert [output.position for output in result.outputs] == [3]


def test_generating_after_a_feed_runs_nothing_before_the_first_token() -> None:
    """The feed has already computed the next logits."""
    world = World()
    session = world.open()
    world.feed(session, [0])
    world.drain()
    world.generate(session, Decoding(1))
    assert not session.unanswered
    assert len(world.scheduler) == 0


def test_generating_again_after_the_end_gives_the_end_again() -> None:
    world = World()
    session = eos_soon(world)
    for _ in range(3):
        world.generate(session, Decoding(5))
        world.drain()
    assert session.results == [Generated(2, [], None, FinishReason.EOS)] * 3


def test_a_session_can_be_fed_on_after_the_end() -> None:
    world = World()
    session = eos_soon(world)
    world.generate(session, Decoding(5))
    world.feed(session, [1], start=2)
    world.drain()
    assert not failures(session)
    assert len(session.tokens) == 3


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_generation_in_two_parts_is_the_generation_in_one(cut: int) -> None:
    world = World()
    whole, parts = world.open(), world.open()
    decoding = four_tokens()
    world.generate(whole, decoding)
    for count in (cut, 4 - cut):
        world.generate(parts, Decoding(count, decoding.sampling))
    world.drain()
    assert len(whole.tokens) == 4
    assert parts.tokens == whole.tokens


def test_sessions_that_generate_beside_one_that_is_fed_each_get_their_own_tokens() -> None:
    widest = 0
    for seed in range(20):
        world = World()
        fed, first, second = (world.open() for _ in range(3))
        for session, token in ((fed, 0), (first, 1), (second, 2)):
            world.feed(session, [token])
        world.drain()
        world.feed(fed, [3])
        for session in (first, second):
            world.generate(session, Decoding(4, Sampling(temperature=50.0, seed=seed)))
        batch = world.run()
        assert batch is not None
        widest = max(widest, len(batch.jobs))
        world.drain()
    assert widest == 3, "the three were never in one batch"


def test_a_feed_after_max_tokens_first_runs_the_token_that_was_generated_last() -> None:
    world = World()
    session = world.open()
    world.generate(session, four_tokens())
    world.feed(session, [0, 1], LOGITS, start=4)
    world.drain()
    assert not failures(session)
    assert world.consumed(session) == session.history


def test_a_cancelled_feed_stops_at_a_token_and_the_next_continues_there() -> None:
    world = World(chunk=2)
    session = world.open()
    world.feed(session, [0, 1, 2, 3, 0, 1, 2, 3])
    world.run()
    world.run()
    assert world.cancel(session) == 1
    assert session.tokens == [0, 1, 2], "two chunks, the first of which began with the start token"
    world.feed(session, [3, 3], LOGITS, start=3)
    world.generate(session, Decoding(3))
    world.drain()
    assert failures(session) == [RequestCancelledError]
    assert world.consumed(session)[:6] == [BOS_ID, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("bos_id", [None, BOS_ID])
def test_a_feed_that_is_cancelled_before_it_ran_leaves_the_session_as_it_was(bos_id: int | None) -> None:
    world = World(bos_id=bos_id)
    session = world.open()
    world.feed(session, [0, 1])
    world.drain()
    world.feed(session, [2])
    world.cancel(session)
    world.generate(session, Decoding(1))
    world.drain()
    assert failures(session) == [RequestCancelledError]
    assert session.tokens[:2] == [0, 1]


def test_a_generation_that_is_cancelled_keeps_the_tokens_it_gave() -> None:
    world = World()
    session, whole = world.open(), world.open()
    decoding = four_tokens()
    world.generate(whole, decoding)
    world.drain()
    job = world.generate(session, decoding, window=2)
    while not job.is_parked:
        world.run()
    world.cancel(session)
    world.grant(job, 2)
    assert len(world.scheduler) == 0, "a grant that comes late wakes nobody"
    assert session.tokens == whole.tokens[:2]
    world.generate(session, Decoding(2, decoding.sampling), start=2)
    world.drain()
    assert session.tokens == whole.tokens


def test_a_parked_generation_takes_no_part_in_batches_until_it_is_granted_room() -> None:
    world = World()
    session = world.open()
    job = world.generate(session, four_tokens(), window=1)
    world.run()
    assert job.is_parked
    assert world.run() is None
    world.grant(job, 1)
    assert not job.is_parked
    world.run()
    assert len(session.tokens) == 2
    world.drain()
    assert len(session.tokens) == 4


def test_resuming_without_a_grant_lets_no_generation_past_its_window() -> None:
    world = World()
    session = world.open()
    job = world.generate(session, four_tokens(), window=1)
    world.run()
    assert job.is_parked
    resume_generation(session.lane, job)
    assert job.is_parked
    assert world.run() is None


def test_of_two_grants_to_a_parked_generation_the_second_does_not_resume_it_again() -> None:
    world = World()
    session = world.open()
    job = world.generate(session, four_tokens(), window=1)
    world.run()
    world.grant(job, 2)
    resume_generation(session.lane, job)  # the second grant was made before the first one was noticed
    assert len(world.scheduler) == 1
    world.drain()
    assert len(session.tokens) == 4


def test_a_position_that_does_not_match_refuses_that_job_alone() -> None:
    world = World()
    session = world.open()
    for start in (0, 0, 2, 9):
        world.feed(session, [0, 1], start=start)
    world.generate(session, Decoding(1), start=3)
    world.generate(session, Decoding(1), start=4)
    world.drain()
    assert failures(session) == [PositionMismatchError] * 3
    assert session.tokens[:4] == [0, 1, 0, 1]


def test_a_model_without_a_start_token_must_be_fed_before_it_generates() -> None:
    world = World(bos_id=None)
    session = world.open()
    world.generate(session, Decoding(1))
    (result,) = session.results
    assert isinstance(result, Failed)
    assert isinstance(result.error, IllegalRequestError)
    assert result.error.message == "this model has no start token: feed a token or a vector before you generate"


def test_cancelling_lets_a_source_that_is_being_encoded_be() -> None:
    world = World()
    session = world.open(source=[1, 2, 3])
    world.feed(session, [0])
    assert world.cancel(session) == 1
    world.feed(session, [1], LOGITS, start=0)
    world.drain()
    assert failures(session) == [RequestCancelledError]
    assert world.consumed(session) == [1, 2, 3, BOS_ID, 1]


def test_a_closed_lane_refuses_jobs() -> None:
    world = World()
    session = world.open()
    world.close(session)
    world.feed(session, [0])
    assert failures(session) == [RequestCancelledError]
    assert len(world.scheduler) == 0


def test_a_failed_run_ends_the_jobs_of_its_lanes_and_of_no_other() -> None:
    world = World(rows=1)
    first, second = world.open(), world.open()
    for session in (first, second):
        world.feed(session, [0, 1])
        world.feed(session, [2])
    world.fail(EngineError("the graph failed"))
    world.drain()
    assert failures(first) == [EngineError, EngineError]
    assert failures(second) == []
    world.feed(first, [0, 1], start=0)
    world.drain()
    assert first.tokens == [0, 1]


def test_a_step_batch_whose_rows_all_mismatch_is_answered_before_later_jobs() -> None:
    """This holds also if the next job has its result immediately."""
    order: list[type[Job]] = []

    class Recording(World):
        def _deliver(self) -> None:
            self.stepper.settle()
            order.extend(type(job) for job, _ in self.stepper.entries if job is not None)
            super()._deliver()

    world = Recording()
    session = world.open()
    world.feed(session, [1])
    world.step_batch([session], [1], starts=[0])
    world.generate(session, Decoding(1))
    world.drain()
    assert order == [FeedJob, StepBatchJob, GenerateJob]

"""All benchmarks by name, and the code of those for many tokens per message, many sessions, and stores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.bare import Array, BareStep, load_step
from benchmarks.curve import open_loop
from benchmarks.faults import Redis
from benchmarks.foreign import foreign
from benchmarks.measure import Report, Row, Sample, alternate, row_of, seconds_a_call
from benchmarks.memory import memory
from benchmarks.processes import Running, populated
from benchmarks.seq2seq import seq2seq
from benchmarks.setup import Setup
from benchmarks.subjects import Subject
from benchmarks.wire import STREAMS, blocking, echo, latency, metrics, naive, shortest, tail, wire

FRAME = 256
GROWTH_ROUNDS = 3
GENERATED = 256
FEW = 1_000


def growth(setup: Setup) -> Report:
    """A step at position 1,000,000 over one at position 100."""
    report = setup.report("growth", f"p50 of a step at position {setup.old_position:,} over one at position 100")
    load = setup.load(tokens=setup.old_position, seconds=2 * setup.seconds)
    with setup.service() as carousel:
        seen = [setup.seen("growth", carousel, load) for _ in range(min(setup.rounds, GROWTH_ROUNDS))]
    pairs = [(Sample(one["stream1_p50_s"], one.get("cpu_us")), Sample(one["stream0_p50_s"])) for one in seen]
    report.rows.append(row_of(setup.small.name, pairs, unit="s", bound=1.05, must_be="at most"))
    return report


def generate(setup: Setup) -> Report:
    """Tokens a second of 64 concurrent streamed generations of 256 tokens over a bare greedy loop at batch 64."""
    question = f"tokens/s of {STREAMS} concurrent streamed generations of {GENERATED} over a bare greedy loop"
    report = setup.report("generate", question)
    with setup.service() as carousel:
        for subject, bound in ((setup.small, 0.5), (setup.large, 0.9)):
            load = setup.load(subject, streams=STREAMS, tokens=GENERATED)
            report.rows.append(
                alternate(
                    subject.name,
                    lambda load=load: setup.sample("generations", carousel, load),  # type: ignore[misc]
                    lambda subject=subject: _bare_tokens_a_second(setup, subject),  # type: ignore[misc]
                    unit="tokens/s",
                    bound=bound,
                    rounds=setup.rounds,
                )
            )
    return report


def frames(setup: Setup) -> Report:
    """Tokens a second with step batches of 256 sessions, four in flight, over a bare loop at batch 256."""
    report = setup.report("frames", f"tokens/s with step batches of {FRAME} sessions over a bare loop at batch {FRAME}")
    with setup.service() as carousel:
        for subject, bound in ((setup.small, 0.75), (setup.large, 0.95)):
            load = setup.load(subject, streams=FRAME)
            report.rows.append(
                alternate(
                    subject.name,
                    lambda load=load: setup.sample("frames", carousel, load),  # type: ignore[misc]
                    lambda subject=subject: _bare_tokens_a_second(setup, subject, FRAME),  # type: ignore[misc]
                    unit="tokens/s",
                    bound=bound,
                    rounds=setup.rounds,
                )
            )
    return report


def _bare_tokens_a_second(setup: Setup, subject: Subject, num_rows: int = STREAMS) -> Sample:
    bare = load_step(subject.folder)
    state, lengths = bare.zeros(num_rows), np.ones(num_rows, np.int64)
    tokens: Array = (1 + np.arange(num_rows) % (subject.vocabulary - 1)).reshape(-1, 1)

    def step() -> None:
        nonlocal tokens, state
        tokens, state = bare.choose(tokens, lengths, state)

    step()
    return Sample(num_rows / seconds_a_call(step, for_s=min(1.0, setup.seconds)))


def int8(setup: Setup) -> Report:
    """Steps a second of bare runs of the large model, int8 over the 32-bit LSTM operator."""
    report = Report("int8", "steps/s of bare runs of the large model, int8 over fp32, in blocks of runs")
    graphs = [load_step(setup.large.folder, variant=variant) for variant in ("int8", "fp32")]
    for num_rows, bound in ((1, 4.0), (64, 1.6)):

        def steps_a_second(bare: BareStep, num_rows: int = num_rows) -> Sample:
            tokens, lengths, state = np.ones((num_rows, 1), np.int64), np.ones(num_rows, np.int64), bare.zeros(num_rows)
            return Sample(num_rows / seconds_a_call(lambda: bare.step(tokens, lengths, state)))

        row = alternate(
            f"batch {num_rows}",
            lambda measure=steps_a_second: measure(graphs[0]),  # type: ignore[misc]
            lambda measure=steps_a_second: measure(graphs[1]),  # type: ignore[misc]
            unit="steps/s",
            bound=bound,
            rounds=setup.rounds,
        )
        report.rows.append(row)
    return report


def million(setup: Setup) -> Report:
    """Memory of a million live sessions over their raw state; steps a second with them over those with a thousand
    sessions."""
    report = setup.report("million", f"with {setup.num_many:,} live sessions of the small model")
    raw = setup.num_many * 2 * setup.small.hidden * 4
    load = setup.load(streams=STREAMS)
    few = populated(setup.models, setup.small.name, FEW)
    with few as (with_few, _), populated(setup.models, setup.small.name, setup.num_many) as (with_many, memory):
        grown = memory["after"] - memory["before"]
        report.rows.append(Row("resident memory", grown, raw, grown / raw, [grown / raw], "bytes", 1.6, "at most"))
        report.rows.append(
            alternate(
                "steps over the wire",
                lambda: setup.sample("lockstep", with_many, load),
                lambda: setup.sample("lockstep", with_few, load),
                unit="steps/s",
                bound=0.9,
                rounds=setup.rounds,
            )
        )
    with populated(setup.models, setup.small.name, setup.num_many // 5, "--feed") as (_, memory):
        grown = (memory["after"] - memory["before"]) * 5
        report.rows.append(
            Row("memory, each fed once", grown, raw, grown / raw, [grown / raw], "bytes", None, "at most")
        )
    return report


def durability(setup: Setup) -> Report:
    """Steps a second of 64 streams with checkpoints or strict durability, over the same without."""
    report = setup.report("durability", f"steps/s at {STREAMS} streams with checkpoints every second over without")
    for store in setup.stores:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            flags: dict[str, object] = {"store": store, "data-folder": folder}
            if store == "redis":
                redis = Redis(folder)
                redis.start()
                stack.callback(redis.stop)
                (folder / "key").write_bytes(bytes(32))
                flags |= {"redis-url": redis.url, "snapshot-key-file": folder / "key"}
            at = stack.enter_context(setup.service(flags))
            report.rows.append(_with_durability(setup, f"{store}, checkpoint", at, "checkpoint", 0.9))
            report.rows.append(_with_durability(setup, f"{store}, strict", at, "strict", None))
    return report


def _with_durability(setup: Setup, subject: str, at: Running, kind: str, bound: float | None) -> Row:
    return alternate(
        subject,
        lambda: setup.sample("lockstep", at, setup.load(streams=STREAMS, durability=kind)),
        lambda: setup.sample("lockstep", at, setup.load(streams=STREAMS)),
        unit="steps/s",
        bound=bound,
        rounds=setup.rounds,
    )


SUITE: dict[str, Callable[[Setup], Report]] = {
    function.__name__: function
    for function in (
        shortest,
        echo,
        wire,
        naive,
        latency,
        tail,
        blocking,
        growth,
        generate,
        frames,
        foreign,
        seq2seq,
        memory,
        million,
        int8,
        durability,
        metrics,
        open_loop,
    )
}

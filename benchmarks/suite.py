"""The benchmarks: what serving costs on top of the model, and of a wire that does nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.bare import Array, BareStep, load_step
from benchmarks.curve import open_loop
from benchmarks.faults import Redis
from benchmarks.measure import Report, Row, alternate, seconds_a_call
from benchmarks.processes import load, populated, server
from benchmarks.subjects import LARGE, SMALL, Subject
from examples.local_service import local_service

STREAMS = 64
FRAME = 256
MILLION = 1_000_000


def echo(models: Path) -> Report:
    """Steps a second at 64 streams of one session, one token a message, over a bare echo server's messages a second."""
    report = Report("echo", f"steps/s at {STREAMS} streams over messages/s of a bare grpc.aio echo server")
    with local_service(models) as service, server("echo") as echo_server:
        report.rows.append(
            alternate(
                SMALL.name,
                lambda: load("lockstep", service.target, streams=STREAMS)["per_second"],
                lambda: load("lockstep", echo_server, streams=STREAMS)["per_second"],
                unit="steps/s",
                bound=0.85,
            )
        )
    return report


def naive(models: Path) -> Report:
    """The same over what one writes by hand, with one thread an operator, and with ONNX Runtime's defaults."""
    report = Report("naive", f"steps/s at {STREAMS} streams over a hand-written server, one session.run a message")
    folder = str(SMALL.folder)
    with (
        local_service(models) as service,
        server("naive", folder, "one") as one_thread,
        server("naive", folder, "defaults") as default_threads,
    ):
        for subject, target in (("one thread", one_thread), ("onnxruntime's defaults", default_threads)):
            report.rows.append(
                alternate(
                    subject,
                    lambda: load("lockstep", service.target, streams=STREAMS)["per_second"],
                    lambda target=target: load("lockstep", target, streams=STREAMS)["per_second"],  # type: ignore[misc]
                    unit="steps/s",
                    bound=2.5,
                )
            )
    return report


def latency(models: Path) -> Report:
    """The median step of a lone stream over that of the echo server and one bare run of the graph."""
    report = Report("latency", "p50 of a lone stream's step over (p50 of the echo server + one bare run)")
    bare = load_step(SMALL.folder)
    tokens, lengths, state = np.ones((1, 1), np.int64), np.ones(1, np.int64), bare.zeros(1)
    with local_service(models) as service, server("echo") as echo_server:
        report.rows.append(
            alternate(
                SMALL.name,
                lambda: load("lockstep", service.target, streams=1)["p50_s"],
                lambda: (
                    load("lockstep", echo_server, streams=1)["p50_s"]
                    + seconds_a_call(lambda: bare.step(tokens, lengths, state))
                ),
                unit="s",
                bound=1.3,
                must_be="at most",
            )
        )
    return report


def blocking(models: Path) -> Report:
    """The 99th percentile of a step while another stream feeds 100,000 tokens at a time, over the same without it."""
    report = Report("blocking", "p99 of 16 streams' steps while another feeds 100,000 tokens, over the same without")
    with local_service(models) as service:
        report.rows.append(
            alternate(
                SMALL.name,
                lambda: load("lockstep", service.target, streams=16, long_feed=100_000)["p99_s"],
                lambda: load("lockstep", service.target, streams=16)["p99_s"],
                unit="s",
                bound=2.0,
                must_be="at most",
            )
        )
    return report


def growth(models: Path) -> Report:
    """A step at position 1,000,000 over one at position 100."""
    report = Report("growth", "p50 of a step at position 1,000,000 over one at position 100")
    with local_service(models) as service:
        seen = [load("growth", service.target, tokens=1_000_000, seconds=4) for _ in range(3)]
    old, young = iter([run["old_s"] for run in seen]), iter([run["young_s"] for run in seen])
    first = seen[0]  # `alternate` makes one round that does not count; inside, the two were stepped in turn already
    report.rows.append(
        alternate(
            SMALL.name,
            lambda: next(old, first["old_s"]),
            lambda: next(young, first["young_s"]),
            unit="s",
            bound=1.05,
            must_be="at most",
            rounds=2,
        )
    )
    return report


def generate(models: Path) -> Report:
    """Tokens a second of 64 concurrent streamed generations of 256 tokens over a bare greedy loop at batch 64."""
    report = Report("generate", f"tokens/s of {STREAMS} concurrent streamed generations of 256 over a bare greedy loop")
    with local_service(models) as service:
        # each stream generates again and again, so that how they begin together counts as little as it does in a day
        for subject, bound, rounds in ((SMALL, 0.5, 20), (LARGE, 0.9, 2)):
            report.rows.append(
                alternate(
                    subject.name,
                    lambda subject=subject, rounds=rounds: load(  # type: ignore[misc]
                        "generations", service.target, model=subject.name, vocabulary=subject.vocabulary, rounds=rounds
                    )["per_second"],
                    lambda subject=subject: _bare_tokens_a_second(subject),  # type: ignore[misc]
                    unit="tokens/s",
                    bound=bound,
                    rounds=3,
                )
            )
    return report


def frames(models: Path) -> Report:
    """Tokens a second with frames of 256 sessions, four in flight, over a bare loop at batch 256."""
    report = Report("frames", f"tokens/s with frames of {FRAME} sessions over a bare loop at batch {FRAME}")
    with local_service(models) as service:
        for subject, bound in ((SMALL, 0.7), (LARGE, 0.9)):
            report.rows.append(
                alternate(
                    subject.name,
                    lambda subject=subject: load(  # type: ignore[misc]
                        "frames", service.target, model=subject.name, vocabulary=subject.vocabulary, streams=FRAME
                    )["per_second"],
                    lambda subject=subject: _bare_tokens_a_second(subject, FRAME),  # type: ignore[misc]
                    unit="tokens/s",
                    bound=bound,
                )
            )
    return report


def int8(models: Path) -> Report:
    """Steps a second of bare runs of the large model, int8 over the 32-bit LSTM operator."""
    report = Report("int8", "steps/s of bare runs of the large model, int8 over fp32, in blocks of runs")
    graphs = [load_step(LARGE.folder, variant=variant) for variant in ("int8", "fp32")]
    for num_rows, bound in ((1, 4.0), (64, 1.6)):

        def steps_a_second(bare: BareStep, num_rows: int = num_rows) -> float:
            tokens, lengths, state = np.ones((num_rows, 1), np.int64), np.ones(num_rows, np.int64), bare.zeros(num_rows)
            return num_rows / seconds_a_call(lambda: bare.step(tokens, lengths, state))

        row = alternate(
            f"batch {num_rows}",
            lambda measure=steps_a_second: measure(graphs[0]),  # type: ignore[misc]
            lambda measure=steps_a_second: measure(graphs[1]),  # type: ignore[misc]
            unit="steps/s",
            bound=bound,
        )
        report.rows.append(row)
    return report


def million(models: Path) -> Report:
    """Memory of a million live sessions over their raw state; steps a second over those with a thousand."""
    report = Report("million", "with 1,000,000 live sessions of the small model")
    raw = MILLION * 2 * SMALL.hidden * 4
    few = populated(models, SMALL.name, 1_000)
    with few as with_few, populated(models, SMALL.name, MILLION) as with_many:
        grown = with_many["after"] - with_many["before"]
        report.rows.append(Row("resident memory", grown, raw, grown / raw, [grown / raw], "bytes", 1.6, "at most"))
        report.rows.append(
            alternate(
                "steps over the wire",
                lambda: load("lockstep", f"127.0.0.1:{with_many['port']}", streams=STREAMS)["per_second"],
                lambda: load("lockstep", f"127.0.0.1:{with_few['port']}", streams=STREAMS)["per_second"],
                unit="steps/s",
                bound=0.9,
            )
        )
    with populated(models, SMALL.name, MILLION // 5, "--feed") as fed:
        grown = (fed["after"] - fed["before"]) * 5
        report.rows.append(
            Row("memory, each fed once", grown, raw, grown / raw, [grown / raw], "bytes", None, "at most")
        )
    return report


def _bare_tokens_a_second(subject: Subject, num_rows: int = STREAMS) -> float:
    bare = load_step(subject.folder)
    state, lengths = bare.zeros(num_rows), np.ones(num_rows, np.int64)
    tokens: Array = (1 + np.arange(num_rows) % (subject.vocabulary - 1)).reshape(-1, 1)

    def step() -> None:
        nonlocal tokens, state
        tokens, state = bare.choose(tokens, lengths, state)

    step()
    return num_rows / seconds_a_call(step, for_s=1.0)


def durability(models: Path) -> Report:
    """Steps a second of `echo`'s streams with write-behind on, over the same without."""
    report = Report("durability", f"steps/s at {STREAMS} streams with checkpoints every second over without")
    for store in ("lmdb", "redis"):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            flags: dict[str, object] = {"store": store, "data-folder": folder}
            if store == "redis":
                redis = Redis(folder)
                redis.start()
                stack.callback(redis.stop)
                (folder / "key").write_bytes(bytes(32))
                flags |= {"redis-url": redis.url, "snapshot-key-file": folder / "key"}
            target = stack.enter_context(local_service(models, flags)).target
            report.rows.append(_with_durability(f"{store}, checkpoint", target, "checkpoint", 0.9))
            report.rows.append(_with_durability(f"{store}, strict", target, "strict", None))
    return report


def metrics(models: Path) -> Report:
    """Steps a second of `echo`'s streams, over the same of a service that keeps no metrics."""
    report = Report("metrics", f"steps/s at {STREAMS} streams over those without any metric")
    with local_service(models) as service, server("silent", str(models)) as silent:
        report.rows.append(
            alternate(
                SMALL.name,
                lambda: load("lockstep", service.target, streams=STREAMS)["per_second"],
                lambda: load("lockstep", silent, streams=STREAMS)["per_second"],
                unit="steps/s",
                bound=0.97,
            )
        )
    return report


def _with_durability(subject: str, target: str, kind: str, bound: float | None) -> Row:
    return alternate(
        subject,
        lambda: load("lockstep", target, streams=STREAMS, durability=kind)["per_second"],
        lambda: load("lockstep", target, streams=STREAMS)["per_second"],
        unit="steps/s",
        bound=bound,
    )


SUITE: dict[str, Callable[[Path], Report]] = {
    function.__name__: function
    for function in (
        echo,
        naive,
        latency,
        blocking,
        growth,
        generate,
        frames,
        million,
        int8,
        durability,
        metrics,
        open_loop,
    )
}

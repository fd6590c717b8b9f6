"""Benchmarks of one token per message: the service over other servers on the same wire."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np

from benchmarks.bare import load_step
from benchmarks.measure import Report, Sample, alternate, row_of, seconds_a_call
from benchmarks.processes import Running, server, service
from benchmarks.setup import Setup

STREAMS = 64
TAIL_ROUNDS = 3
_BOUNDS: dict[str, dict[str, dict[int, float]]] = {
    "grpcio": {
        "shortest": {1: 0.85, 16: 0.85, 64: 0.9},
        "echo": {16: 0.58, 64: 0.54},
        "wire": {16: 0.58, 64: 0.54},
        "latency": {1: 2.2},
        "tail": {64: 4.0},
    },
    "envoy": {
        "shortest": {1: 0.85, 16: 0.8, 64: 0.8},
        "echo": {16: 0.3, 64: 0.3},
        "wire": {16: 0.96, 64: 1.1},
        "latency": {1: 2.0},
        "tail": {64: 3.0},
    },
}
"""The bounds that depend on the wire, by benchmark and number of streams."""


def echo(setup: Setup) -> Report:
    """Steps a second of single tokens at 16 and 64 streams, over those of a bare echo server on the same wire."""
    report = setup.report("echo", f"steps/s over messages/s of a bare echo server, both on {setup.wire}")
    with setup.service() as carousel, setup.server("echo") as echo_server:
        _add_streams(report, setup, carousel, echo_server, _BOUNDS[setup.wire]["echo"])
    return report


def wire(setup: Setup) -> Report:
    """Steps a second of single tokens at 16 and 64 streams, over a bare grpc.aio echo server, on either wire."""
    report = setup.report("wire", f"steps/s on {setup.wire} over messages/s of a bare grpc.aio echo server")
    with setup.service() as carousel, server("grpcio", "echo") as echo_server:
        _add_streams(report, setup, carousel, echo_server, _BOUNDS[setup.wire]["wire"])
    return report


def shortest(setup: Setup) -> Report:
    """Steps a second of single tokens at 1, 16 and 64 streams, over the shortest server that batches and has state."""
    report = setup.report(
        "shortest", f"steps/s over the shortest server that batches and keeps state, both on {setup.wire}"
    )
    with setup.service() as carousel, setup.server("shortest", str(setup.small.folder)) as short:
        _add_streams(report, setup, carousel, short, _BOUNDS[setup.wire]["shortest"])
    return report


def _add_streams(report: Report, setup: Setup, ours: Running, theirs: Running, bounds: dict[int, float]) -> None:
    for num_streams, bound in bounds.items():
        load = setup.load(streams=num_streams)
        report.rows.append(
            alternate(
                f"{num_streams} stream{'s' if num_streams > 1 else ''}",
                lambda load=load: setup.sample("lockstep", ours, load),  # type: ignore[misc]
                lambda load=load: setup.sample("lockstep", theirs, load),  # type: ignore[misc]
                unit="steps/s",
                bound=bound,
                rounds=setup.rounds,
            )
        )


def naive(setup: Setup) -> Report:
    """Steps a second at 64 streams over a hand-written server, with one thread per operator, and with ONNX Runtime's
    defaults."""
    report = setup.report(
        "naive", f"steps/s at {STREAMS} streams over a hand-written server, one session.run a message"
    )
    folder, load = str(setup.small.folder), setup.load(streams=STREAMS)
    with (
        setup.service() as carousel,
        setup.server("naive", folder, "one") as one_thread,
        setup.server("naive", folder, "defaults") as default_threads,
    ):
        for subject, other in (("one thread", one_thread), ("onnxruntime's defaults", default_threads)):
            report.rows.append(
                alternate(
                    subject,
                    lambda: setup.sample("lockstep", carousel, load),
                    lambda other=other: setup.sample("lockstep", other, load),  # type: ignore[misc]
                    unit="steps/s",
                    bound=2.5,
                    rounds=setup.rounds,
                )
            )
    return report


def latency(setup: Setup) -> Report:
    """The median latency of a lone stream's step, over that of the echo server plus one bare run of the graph."""
    report = setup.report("latency", "p50 of a lone stream's step over (p50 of the echo server + one bare run)")
    bare, load = load_step(setup.small.folder), setup.load(streams=1)
    tokens, lengths, state = np.ones((1, 1), np.int64), np.ones(1, np.int64), bare.zeros(1)

    def echo_and_run(echo_server: Running) -> Sample:
        wire = setup.sample("lockstep", echo_server, load, "p50_s")
        return Sample(wire.value + seconds_a_call(lambda: bare.step(tokens, lengths, state)), wire.cpu_us)

    with setup.service() as carousel, setup.server("echo") as echo_server:
        report.rows.append(
            alternate(
                setup.small.name,
                lambda: setup.sample("lockstep", carousel, load, "p50_s"),
                lambda: echo_and_run(echo_server),
                unit="s",
                bound=_BOUNDS[setup.wire]["latency"][1],
                must_be="at most",
                rounds=setup.rounds,
            )
        )
    return report


def tail(setup: Setup) -> Report:
    """The 99.9th percentile of a step's latency over its median, at 64 streams for half a minute."""
    report = setup.report("tail", f"p99.9 over p50 of a step at {STREAMS} streams, held {setup.held_s:g} s")
    load = setup.load(streams=STREAMS, seconds=setup.held_s)
    pairs, of_echo = [], []
    with setup.service() as carousel, setup.server("echo") as echo_server:
        for _ in range(min(setup.rounds, TAIL_ROUNDS)):
            ours, theirs = (setup.seen("lockstep", at, load) for at in (carousel, echo_server))
            cpu_us = ours.get("cpu_us")
            pairs.append((Sample(ours["p999_s"], cpu_us), Sample(ours["p50_s"])))
            of_echo.append(theirs["p999_s"] / theirs["p50_s"])
    report.rows.append(
        row_of(setup.small.name, pairs, unit="s", bound=_BOUNDS[setup.wire]["tail"][STREAMS], must_be="at most")
    )
    middle, low, high = statistics.median(of_echo), min(of_echo), max(of_echo)
    report.notes.append(f"the same ratio of the echo server, measured in turn: {middle:.2f} ({low:.2f} to {high:.2f})")
    return report


def blocking(setup: Setup) -> Report:
    """The 99th percentile of a step's latency while another stream feeds 100,000 tokens at a time, over the same
    without it."""
    question = f"p99 of 16 streams' steps while another feeds {setup.long_feed:,} tokens, over the same without"
    report = setup.report("blocking", question)
    report.notes.append("CPU time beside the long feed is that of both, over the steps of the 16 streams alone")
    alone = setup.load(streams=16)
    beside = replace(alone, long_feed=setup.long_feed)
    with setup.service() as carousel:
        report.rows.append(
            alternate(
                setup.small.name,
                lambda: setup.sample("lockstep", carousel, beside, "p99_s"),
                lambda: setup.sample("lockstep", carousel, alone, "p99_s"),
                unit="s",
                bound=1.8,
                must_be="at most",
                rounds=setup.rounds,
            )
        )
    return report


def metrics(setup: Setup) -> Report:
    """Steps a second of 64 streams, over those of a service that keeps no metrics; both on grpcio."""
    report = setup.report("metrics", f"steps/s at {STREAMS} streams over those without any metric")
    load = setup.load(streams=STREAMS)
    with (
        service(setup.models, "grpcio") as carousel,
        server("grpcio", "silent", str(setup.models)) as silent,
    ):
        report.rows.append(
            alternate(
                setup.small.name,
                lambda: setup.sample("lockstep", carousel, load),
                lambda: setup.sample("lockstep", silent, load),
                unit="steps/s",
                bound=0.97,
                rounds=setup.rounds,
            )
        )
    return report

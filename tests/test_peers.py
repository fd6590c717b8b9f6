"""The peers are measured correctly: Triton's messages and its model, crashes of a peer, the rows and the plot."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.bare import load_step
from benchmarks.peers import BY_HAND, ENVOY, GRPCIO, TRITON, latency_against_load, peers
from benchmarks.peers_curve import draw, print_curves
from benchmarks.processes import Running, Seen
from benchmarks.restarts import MAX_FAILURES, Restarted, Started
from benchmarks.setup import Setup
from benchmarks.traffic import Load
from benchmarks.triton import messages
from benchmarks.triton.server import write_repository
from tests.bundles import write_language_model

# bytes that NVIDIA's own client (tritonclient 2.73.0) writes and reads
START = (
    b'\n\x02lm"\x11\n\x0bsequence_id\x12\x02\x10\x07"\x14\n\x0esequence_start\x12\x02\x08\x01'
    b"*\x13\n\x06tokens\x12\x05INT64\x1a\x02\x01\x01:\x08\x05\x00\x00\x00\x00\x00\x00\x00"
)
ANSWER = b"\x12*\n\x02lm\x12\x011*\x17\n\nnext_token\x12\x05INT64\x1a\x02\x01\x012\x08\t\x00\x00\x00\x00\x00\x00\x00"
ERROR = b"\n\x10there is no room"


def test_a_request_is_what_tritons_own_client_writes() -> None:
    assert messages.request("lm", 7, 5, is_start=True) == START
    assert b"sequence_start" not in messages.request("lm", 7, 5)


def test_a_response_gives_its_token_or_raises_its_error() -> None:
    assert messages.next_token(ANSWER) == 9
    with pytest.raises(RuntimeError, match="there is no room"):
        messages.next_token(ERROR)


def test_each_stream_is_a_sequence_of_its_own_that_its_first_request_starts() -> None:
    traffic = messages.arrivals(Load(model="lm", streams=3, vocabulary=64, rate=70.0))
    assert (traffic.method, traffic.rate, len(traffic.sequences)) == (messages.METHOD, 70.0, 3)
    for index, sequence in enumerate(traffic.sequences):
        assert sequence.first == [messages.request("lm", index + 1, 1, is_start=True)]
        assert sequence.steps[62:] == [messages.request("lm", index + 1, token) for token in (63, 1)]


def test_tokens_are_requested_one_by_one_on_one_stream() -> None:
    seen: list[bytes] = []

    def handler(stream: Iterator[bytes], _: Any) -> Iterator[bytes]:
        for request in stream:
            seen.append(request)
            yield ANSWER

    service, method = messages.METHOD[1:].split("/")
    server = grpc.server(ThreadPoolExecutor(1))
    handlers: dict[str, Any] = {method: grpc.stream_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert messages.next_tokens(f"127.0.0.1:{port}", "lm", [5, 6, 7], 7) == [9, 9, 9]
    finally:
        server.stop(0).wait()
    assert seen == [START, messages.request("lm", 7, 6), messages.request("lm", 7, 7)]


@contextmanager
def fake_server() -> Iterator[Started]:
    """Runs a process that does nothing until it is killed or reads a line."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield Started("nowhere", process)
        finally:
            process.kill()


def test_a_crash_is_counted_and_the_run_is_repeated() -> None:
    started: list[Started] = []

    @contextmanager
    def start() -> Iterator[Started]:
        with fake_server() as one:
            started.append(one)
            yield one

    def measure(at: Running) -> Seen:
        process = started[-1].process
        assert at == Running("nowhere", process.pid)
        if len(started) == 1:
            process.send_signal(11)
        elif len(started) == 2:
            process.communicate(b"\n")  # makes the process end by itself, with exit code 0
        else:
            return {"per_second": 1.0}
        raise RuntimeError("the server ended stream 63")

    with Restarted("it", start) as failing:
        assert failing.summary() == "it failed in 0 of 0 runs"
        assert failing.seen(measure) == failing.seen(measure) == {"per_second": 1.0}
        assert failing.summary() == "it failed in 2 of 4 runs: SIGSEGV 1, exit code 0 1"
        assert started[2].process.poll() is None
    assert len(started) == 3
    assert started[2].process.poll() is not None


def test_a_server_that_fails_in_every_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.restarts._END_S", 0.01)

    def measure(_: Running) -> Seen:
        raise RuntimeError("no request was answered in 2 s")

    with Restarted("it", fake_server) as failing, pytest.raises(RuntimeError, match=r"the last error: no request was"):
        failing.seen(measure)
    assert failing.failures == {"no answer": MAX_FAILURES}


def test_tritons_model_keeps_the_state_of_each_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests may be in any batch. A request with the start flag resets the state of its sequence."""
    bundle = write_language_model(tmp_path, has_heads=True)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _BACKEND)
    monkeypatch.delitem(sys.modules, "benchmarks.triton.model", raising=False)
    model = importlib.import_module("benchmarks.triton.model").TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {"bundle": {"string_value": str(bundle)}}})})
    rounds = [{1: (3, 1), 2: (4, 1)}, {2: (1, 0)}, {1: (2, 0), 2: (5, 0)}, {2: (3, 1), 3: (3, 1), 1: (2, 0)}]
    bare, states = load_step(bundle), dict[int, Any]()
    for step in rounds:
        requests = [_Request(sequence, token, flags) for sequence, (token, flags) in step.items()]
        got = [response[0][1].tolist() for response in model.execute(requests)]
        expected = []
        for sequence, (token, flags) in step.items():
            state = bare.zeros(1) if flags else states[sequence]
            chosen, states[sequence] = bare.choose(np.array([[token]]), np.ones(1, np.int64), state)
            expected.append(chosen.tolist())
        assert got == expected


class _Request:
    """A request as Triton's Python backend passes it to the model."""

    def __init__(self, sequence: int, token: int, flags: int) -> None:
        self.correlation_id = lambda: sequence
        self.flags = lambda: flags
        self.token = np.array([[token]])


_BACKEND = ModuleType("triton_python_backend_utils")
_BACKEND.__dict__.update(
    get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request.token),
    InferenceResponse=lambda tensors: tensors,
    Tensor=lambda name, values: (name, values),
)


def test_the_model_repository_has_the_model_and_names_the_bundle(tmp_path: Path) -> None:
    write_repository(tmp_path, "lm", tmp_path / "bundle")
    configuration = (tmp_path / "lm" / "config.pbtxt").read_text()
    assert f'string_value: "{(tmp_path / "bundle").resolve()}"' in configuration
    assert configuration.count("{") == configuration.count("}")
    compile((tmp_path / "lm" / "1" / "model.py").read_text(), "model.py", "exec")


def seen_at(per_second: float, due: float = 0.0) -> Seen:
    """Returns the figures of a one-second measurement in which the server answered `per_second` of `due` steps."""
    times = {"p50_s": 0.001, "p99_s": 0.002, "lag_p99_s": 0.0}
    counts = {"steps": per_second, "requests": per_second, "unanswered": 1.0, "errors": due - per_second - 1.0}
    return {"per_second": per_second, "cpu_us": 1e6 / per_second, **times, **counts}


def test_all_peers_are_measured_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, str, int]] = []

    def measure(name: str, per_second: float) -> Any:
        def one(traffic: str, load: Load) -> Seen:
            calls.append((name, traffic, load.streams))
            return seen_at(per_second if len(calls) > 4 else 1.0)

        return one

    rates = {TRITON: 100.0, ENVOY: 250.0, GRPCIO: 150.0, BY_HAND: 50.0}
    report = peers(Setup(rounds=2), {name: measure(name, rate) for name, rate in rates.items()})
    assert calls == [(name, "lockstep", streams) for streams in (16, 64) for _ in range(3) for name in rates]
    assert [row.ratio for row in report.rows] == [2.5, 1.5, 5.0] * 2
    assert [(row.bound, row.is_met) for row in report.rows[::3]] == [(2.2, True), (2.6, False)]
    assert (report.rows[0].cpu_us, report.rows[0].their_cpu_us) == (4_000.0, 10_000.0)


def test_the_load_grows_until_the_server_cannot_keep_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.peers.SHARES", (0.1, 0.5, 0.9))

    def measure(limit: float) -> Any:
        return lambda traffic, load: seen_at(min(load.rate, limit), load.rate)

    measures = {
        name: measure(limit) for name, limit in {TRITON: 300.0, ENVOY: 960.0, GRPCIO: 499.0, BY_HAND: 9.0}.items()
    }
    curves = latency_against_load(Setup(), measures, 1000.0)
    offered = {name: [rate for rate, _ in points] for name, points in curves.items()}
    assert offered == {TRITON: [100, 500], ENVOY: [100, 500, 900], GRPCIO: [100, 500, 900], BY_HAND: [100]}
    draw(curves, tmp_path / "peers.svg")
    assert "<svg" in (tmp_path / "peers.svg").read_text()
    print_curves(curves)
    assert len(capsys.readouterr().out.strip().splitlines()) == 1 + sum(map(len, offered.values()))

"""The benchmarks measure what they claim: the native load generator, a token's path, and each benchmark with tiny
models."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import pytest

from benchmarks import native_load, path, simulate
from benchmarks.calls import Crossed, Recorder
from benchmarks.measure import Report, Sample, row_of, write
from benchmarks.processes import Running, populated, server, service
from benchmarks.setup import Setup
from benchmarks.subjects import Subject
from benchmarks.suite import SUITE
from benchmarks.traffic import Load, Sequence, Traffic, field_path
from benchmarks.translators import Translator
from carousel import Client
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from tests.bundles import HIDDEN_SIZE, VOCABULARY_SIZE, write_language_model
from tests.services import local_service

LIKE_OTHERS = {"echo", "wire", "naive", "metrics", "million", "foreign"}
"""Benchmarks that work as `shortest` or `seq2seq` do, but whose servers start slowly or whose models take long to make.
Two of these servers have their own tests below."""
Handler = Callable[[Iterator[pb.StreamRequest], Any], Iterator[pb.StreamResponse]]
SHORT = Load(seconds=0.3, warmup_s=0.0)


needs_native = pytest.mark.usefixtures("native")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Builds the native load generator in a cache for these tests. Returns its path.

    If it cannot be built, the tests are skipped; with TESTS_REQUIRE_SERVICES=1 they fail.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        native_load.generator.cache_clear()
        reason = native_load.why_not()
        if reason:
            (pytest.fail if os.environ.get("TESTS_REQUIRE_SERVICES") == "1" else pytest.skip)(reason)
        yield native_load.generator()
    native_load.generator.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def forked_services() -> Iterator[None]:
    """Starts services sooner: see `tests.services`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.processes.local_service", local_service)
        yield


@pytest.fixture(scope="module")
def carousel(subjects: tuple[Subject, Subject]) -> Iterator[Running]:
    """A service of the subjects' models."""
    with service(subjects[0].repository, "grpcio") as started:
        yield started


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Subject]:
    """A small and a large subject, both with tiny models."""
    folder = tmp_path_factory.mktemp("subjects")
    write_language_model(folder, model="small", eos_id=None, has_heads=True)
    write_language_model(folder, model="large", eos_id=None, has_heads=True, variants={"int8": 3})
    small = Subject("small", HIDDEN_SIZE, 1, VOCABULARY_SIZE, repository=folder)
    return small, Subject("large", HIDDEN_SIZE, 1, VOCABULARY_SIZE, ("int8",), folder)


@contextmanager
def served(handler: Handler) -> Iterator[str]:
    """Runs a server in this process, with `handler` as its stream method. Gives its address."""
    method = grpc.stream_stream_rpc_method_handler(
        handler,
        request_deserializer=pb.StreamRequest.FromString,
        response_serializer=pb.StreamResponse.SerializeToString,
    )
    one = grpc.server(ThreadPoolExecutor(16))
    one.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("carousel.v1.Inference", {"Stream": method}),))
    port = one.add_insecure_port("127.0.0.1:0")
    one.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        one.stop(0).wait()


def requests(*numbers: int) -> list[bytes]:
    """Returns serialized requests with these ids."""
    return [pb.StreamRequest(request_id=number, close=pb.Close()).SerializeToString() for number in numbers]


def answer(request: pb.StreamRequest) -> pb.StreamResponse:
    """Returns a response that is not an error."""
    return pb.StreamResponse(request_id=request.request_id, fed=pb.Fed())


@needs_native
def test_each_stream_replays_its_own_messages_in_order_and_all_answers_are_counted() -> None:
    seen: list[list[int]] = []

    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        mine: list[int] = []
        seen.append(mine)
        for request in stream:
            mine.append(request.request_id)
            yield answer(request)

    sequences = [
        Sequence(requests(1, 2), requests(3, 4, 5)),
        Sequence([], requests(7), channel=1),
        Sequence(requests(8), requests(9), channel=1, is_counted=False),
    ]
    with served(handler) as target:
        got = native_load.replay(target, Traffic(sequences), SHORT, os.getpid())
    by_first = {mine[0]: mine for mine in seen}
    assert len(seen) == len(by_first) == len(sequences)
    assert by_first[1][:9] == [1, 2, 3, 4, 5, 3, 4, 5, 3]
    assert set(by_first[7]) == {7}
    assert by_first[8][:3] == [8, 9, 9]
    answered = len(by_first[1]) - 2 + len(by_first[7])
    # the first answers may arrive before the window opens, the last ones after it closes
    assert answered - 6 <= got["steps"] <= answered
    assert got["answers"] == got["steps"]
    assert 0.25 < got["seconds"] < 2
    assert got["per_second"] == pytest.approx(got["steps"] / got["seconds"], rel=0.01)
    assert 0 < got["p50_s"] <= got["p99_s"] <= got["p999_s"] < 2
    assert got["cpu_us"] > 0


@needs_native
def test_the_requested_number_of_requests_is_in_flight() -> None:
    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        pending = []
        for request in stream:
            pending.append(request)
            if len(pending) == 4:  # with fewer than 4 requests in flight, nothing would ever be answered
                yield from map(answer, pending)
                pending = []

    with served(handler) as target:
        got = native_load.replay(target, Traffic([Sequence([], requests(1))], 4, steps_per_answer=256), SHORT)
    assert got["answers"] > 20
    assert got["steps"] == 256 * got["answers"]


@needs_native
def test_a_request_ends_with_the_response_that_has_the_end_field() -> None:
    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        for _request in stream:
            for num_tokens in (2, 3):
                yield pb.StreamResponse(generated=pb.Generated(tokens=[pb.Token(id=300, text="x" * 200)] * num_tokens))
            yield pb.StreamResponse(position=70_000, generated=pb.Generated(finish_reason=pb.FINISH_REASON_MAX_TOKENS))

    traffic = Traffic(
        [Sequence([], requests(1))],
        end_field=field_path(pb.StreamResponse, "generated", "finish_reason"),
        count_field=field_path(pb.StreamResponse, "generated", "tokens"),
    )
    with served(handler) as target:
        got = native_load.replay(target, traffic, SHORT)
    assert got["requests"] > 10
    assert abs(got["answers"] - 3 * got["requests"]) <= 3
    assert abs(got["steps"] - 5 * got["requests"]) <= 5


@needs_native
def test_the_window_lasts_until_the_first_response() -> None:
    """On a busy machine no benchmark may divide by zero."""

    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        for request in stream:
            threading.Event().wait(0.5)
            yield answer(request)

    with served(handler) as target:
        got = native_load.replay(target, Traffic([Sequence([], requests(1))]), Load(seconds=0.1, warmup_s=0.0))
    assert (got["steps"], got["requests"]) == (1, 1)
    assert got["seconds"] > 0.3


@needs_native
@pytest.mark.parametrize("after", [0, 5], ids=["first message", "step"])
def test_a_refusal_by_the_server_fails_the_replay_with_its_message(after: int) -> None:
    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        for number, request in enumerate(stream):
            yield (
                answer(request)
                if number < after
                else pb.StreamResponse(error=error_pb2.Error(message="there is no room"))
            )

    with served(handler) as target, pytest.raises(RuntimeError, match="there is no room"):
        native_load.replay(target, Traffic([Sequence(requests(1), requests(2))]), SHORT)


@needs_native
def test_the_traffic_can_name_another_method() -> None:
    chat: Any = grpc.stream_stream_rpc_method_handler(lambda stream, _: (b"\x0a\x04full" for _ in stream))
    handlers = {"Chat": chat}
    one = grpc.server(ThreadPoolExecutor(1))
    one.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("other.Service", handlers),))
    target = f"127.0.0.1:{one.add_insecure_port('127.0.0.1:0')}"
    one.start()
    sequences = [Sequence([], requests(1))]
    try:
        got = native_load.replay(target, Traffic(sequences, method="/other.Service/Chat", error_fields=("2",)), SHORT)
        assert got["requests"] > 10
        with pytest.raises(RuntimeError, match="first answer: \n\x04full"):
            native_load.replay(target, Traffic(sequences, method="/other.Service/Chat", error_fields=("1",)), SHORT)
    finally:
        one.stop(0).wait()


@needs_native
def test_a_servers_cpu_time_includes_its_child_processes() -> None:
    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        return map(answer, stream)

    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    traffic = Traffic([Sequence([], requests(1))])
    with served(handler) as target, subprocess.Popen([sys.executable, "-c", busy], start_new_session=True) as parent:
        try:
            got = native_load.replay(target, traffic, Load(seconds=1.0, warmup_s=0.5), parent.pid)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
    assert got["cpu_us"] * got["steps"] > 0.05e6


@needs_native
def test_a_stream_that_the_server_ends_fails_the_replay() -> None:
    with (
        served(lambda stream, _: iter([answer(next(stream))])) as target,
        pytest.raises(RuntimeError, match="the server ended stream 0 after 0 first messages"),
    ):
        native_load.replay(target, Traffic([Sequence([], requests(2))]), SHORT)


@needs_native
def test_streams_in_turns_never_send_at_the_same_time() -> None:
    lock = threading.Lock()
    counts: dict[int, int] = {}
    overlaps = 0

    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        nonlocal overlaps
        for request in stream:
            if not lock.acquire(blocking=False):
                overlaps += 1
                lock.acquire()
            counts[request.request_id] = counts.get(request.request_id, 0) + 1
            lock.release()
            yield answer(request)

    traffic = Traffic([Sequence([], requests(1)), Sequence([], requests(2))], turn_s=0.02)
    with served(handler) as target:
        got = native_load.replay(target, traffic, SHORT)
    assert overlaps == 0
    assert min(counts[1], counts[2]) > 5
    assert got["stream0_p50_s"] > 0
    assert got["stream1_p50_s"] > 0


@needs_native
def test_an_open_loop_measures_from_the_time_a_request_was_due() -> None:
    released = threading.Event()

    def handler(stream: Iterator[pb.StreamRequest], _: Any) -> Iterator[pb.StreamResponse]:
        for request in stream:
            released.wait(0.4)
            yield answer(request)

    traffic = Traffic([Sequence([], requests(1)), Sequence([], requests(1))], rate=200.0)
    with served(handler) as target:
        slow = native_load.replay(target, Traffic(traffic.sequences, rate=20.0), SHORT)
        released.set()
        got = native_load.replay(target, traffic, Load(seconds=1.0, warmup_s=0.1))
    assert got["unanswered"] == slow["unanswered"] == 0
    assert 100 < got["requests"] < 300
    assert got["lag_p50_s"] >= 0
    assert slow["requests"] > 0
    assert slow["p50_s"] > 0.39


def test_the_generator_says_which_argument_is_wrong(native: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(native_load.message_file([Sequence([], requests(1))])[:-1])
    for arguments, reason in (
        ([], "--target is missing"),
        (["--target", "x", "--messages", str(cut)], "it ends early"),
        (["--target", "x", "--messages", "/nowhere"], "it cannot be opened"),
        (["--seconds", "x"], "--seconds = 'x': expected a number"),
        (["--end-field", "6."], "--end-field = '6.': expected field numbers"),
        (["--loud", "1"], "unknown option '--loud'"),
    ):
        done = subprocess.run([native, *arguments], capture_output=True, text=True, check=False, timeout=20)
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr


def test_the_generator_is_built_once_into_the_cache(native: Path) -> None:
    assert native.parent == native_load.cache_folder()
    built = native.stat().st_mtime_ns
    native_load.generator.cache_clear()
    assert native_load.generator() == native
    assert native.stat().st_mtime_ns == built
    assert list(native.parent.iterdir()) == [native]


@needs_native
@pytest.mark.parametrize("name", sorted(set(SUITE) - LIKE_OTHERS))
def test_every_benchmark_measures(
    name: str,
    subjects: tuple[Subject, Subject],
    carousel: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each benchmark runs with tiny models for a short time and reports figures of both sides. Their values do not
    matter."""
    monkeypatch.setattr("benchmarks.curve.SHARES", (0.1, 0.5))
    # transducers take long to export
    monkeypatch.setattr("benchmarks.seq2seq.add_transducers", lambda setup, report: None)
    monkeypatch.setattr("benchmarks.seq2seq.TRANSLATOR", Translator("translator-small", 16, 40))
    small, large = subjects
    setup = Setup(
        small.repository,
        small,
        large,
        seconds=0.5 if name == "growth" else 0.1,  # its two sessions work in turns of a 20th of that
        warmup_s=0.05,
        held_s=0.3,
        rounds=1,
        old_position=1_000,
        long_feed=1_000,
        num_idle=50,
        stores=("lmdb",),
        shared=carousel,
        picture=tmp_path / "load.svg",
    )
    report = SUITE[name](setup)
    report.print()
    assert report.name == name
    assert report.rows
    assert not [note for note in report.notes if "not available" in note]
    for row in report.rows:
        assert row.ratio > 0
        assert row.ours > 0
        assert row.theirs > 0
        if row.unit in ("steps/s", "tokens/s") and name != "int8":
            assert row.cpu_us is not None


def test_without_a_compiler_the_python_generator_is_used_and_the_report_says_so(
    subjects: tuple[Subject, Subject], carousel: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small, _ = subjects
    monkeypatch.setenv("PATH", str(tmp_path))
    native_load.generator.cache_clear()
    try:
        setup = Setup(small.repository, small, small, seconds=0.2, old_position=300, long_feed=300)
        assert setup.report("echo", "").notes == [
            "native generator: not available (no g++): the Python generator uses a core, so ratios are not comparable"
        ]
        for generator, load in (
            ("lockstep", setup.load(streams=2, long_feed=300)),
            ("generations", setup.load(streams=2, tokens=8)),
            ("frames", setup.load(streams=4)),
            ("growth", setup.load(tokens=300)),
            ("arrivals", setup.load(streams=2, rate=50.0)),
        ):
            assert setup.sample(generator, carousel, load).value > 0
    finally:
        native_load.generator.cache_clear()


async def test_calls_and_files_are_counted_for_every_event(tiny_repository: Path) -> None:
    events = await path.measure(tiny_repository, "tiny-endless", 11)
    assert list(events) == [
        "one fed token",
        "open plain",
        "open strict",
        "generate 32 tokens",
        "strict feed with its checkpoint",
        "resume from the store",
    ]
    for crossed in events.values():
        assert 0 < crossed.files <= crossed.functions <= crossed.calls
        assert crossed.files - 1 <= crossed.moves < crossed.calls
    fed = events["one fed token"]
    # the limits were measured before calls had reports, and for a model that needs one call and one file less
    assert fed.calls <= path.MAX_CALLS + 1
    assert fed.files <= path.MAX_FILES + 1
    assert events["strict feed with its checkpoint"].calls > fed.calls
    assert events["generate 32 tokens"].calls > fed.calls
    assert sys.getprofile() is None
    assert threading.getprofile() is None


async def test_the_recorder_counts_only_the_folders_calls_and_resumptions(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    one = load_module(tmp_path / "ours" / "one.py", "def leaf():\n    pass\n")
    text = "import asyncio\nasync def root(leaf):\n    leaf()\n    await asyncio.sleep(0)\n    leaf()\n    leaf()\n"
    two = load_module(tmp_path / "ours" / "two.py", text)
    theirs = load_module(tmp_path / "ours.py", "def leaf():\n    pass\n")
    recorder = Recorder(tmp_path / "ours")

    async def event(root: Callable[..., Awaitable[None]]) -> None:
        await root(one.leaf)
        theirs.leaf()

    with recorder.installed():
        await event(two.root)
        recorder.is_on = True
        await event(two.root)
        thread = threading.Thread(target=one.leaf)  # neither the thread of the event loop nor that of an engine
        thread.start()
        thread.join()
        crossed = recorder.take()
        await event(two.root)
        assert recorder.take() == Crossed(0, 0, 0, 0)
    # root, leaf, root after the sleep, leaf, leaf
    assert crossed == Crossed(calls=5, functions=2, files=2, moves=3)


def load_module(file: Path, text: str) -> ModuleType:
    """Writes a module with this text and imports it."""
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_has_ratios_and_cpu_time_by_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(Sample(value, 60.0 + value), Sample(10.0, 30.0)) for value in (2.0, 5.0, 4.0)]
    rows = [row_of("16 streams", pairs, unit="steps/s", bound=0.5), row_of("bare", pairs, unit="steps/s", bound=None)]
    one, many = Report("echo", "?", rows[:1]), Report("echo", "?", rows)
    one.print()
    assert "= 0.400 (0.200 to 0.500)  CPU 64 / 30 us a step  at least 0.5: NOT MET" in capsys.readouterr().out
    write([one], tmp_path / "one.json")
    assert {"ratio": 0.4, "cpu_us": 64.0, "their_cpu_us": 30.0}.items() <= read(tmp_path / "one.json").items()
    write([one, many], tmp_path / "all.json")
    assert read(tmp_path / "all.json")["ratio"] == {"echo": {"16 streams": 0.4, "bare": 0.4}}


def read(file: Path) -> dict[str, Any]:
    """Returns the JSON document in a file."""
    document: dict[str, Any] = json.loads(file.read_text())
    return document


@pytest.mark.parametrize(("violations", "code"), [([], 0), (["seed 4"], 1)])
def test_simulate_writes_what_the_simulation_found(
    violations: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(seconds: float, seed: int) -> dict[str, Any]:
        return {"seeds": seed, "events": seconds, "violations": violations}

    monkeypatch.setitem(sys.modules, "simulation", ModuleType("simulation"))
    monkeypatch.setitem(sys.modules, "simulation.run", SimpleNamespace(main=run))
    file = tmp_path / "simulation.json"
    assert simulate.main(["--seconds", "2.5", "--seed", "7", "--json", str(file)]) == code
    assert read(file) == {"seeds": 7, "events": 2.5, "violations": violations}


def test_the_service_works_without_metrics(tiny_repository: Path) -> None:
    with server("grpcio", "silent", str(tiny_repository)) as silent, Client(silent.target) as client:
        with client.session("tiny-endless") as session:
            session.feed([2, 3])
            assert session.position == 2
        assert len(list(client.generate("tiny-endless", max_tokens=5))) == 5


def test_the_populated_service_reports_its_memory(subjects: tuple[Subject, Subject]) -> None:
    small, _ = subjects
    with populated(small.repository, small.name, 500, "--feed") as (at, memory), Client(at.target) as client:
        assert memory["after"] > memory["before"] > 0
        with client.session(small.name) as session:
            session.feed([1])

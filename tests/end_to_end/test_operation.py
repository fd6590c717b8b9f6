"""The service as its operators see it: start, health, metrics, shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import urllib.request
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from service.sessions.stores.base import Write
from service.sessions.stores.lmdb import LmdbStore
from service.telemetry.metrics import Metrics, markdown
from tests.conftest import ROOT
from tests.end_to_end.wire import g2p, lm, wire
from tests.fork_server import run
from tests.services import local_service
from tests.waiting import until


def scrape(service: LocalService) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(service.metrics_url, timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_count_exactly_what_was_done(g2p_repository: Path) -> None:
    model = (("model", "g2p-en"), ("version", "1"))
    with local_service(g2p_repository) as service:
        async with wire(service.target) as stream:
            await stream.ask("m", open=g2p())
            await stream.ask("m", feed=pb.Feed(tokens=["K", "EH"]))
            await stream.ask("m", feed=pb.Feed(tokens=["nope"]))
            await stream.send("m", generate=pb.Generate())
            tokens, _ = await stream.generated()
            during = scrape(service)
            await stream.ask("m", close=pb.Close())
        after = scrape(service)

    def value(name: str, *labels: tuple[str, str], of: dict[object, float] = after) -> float:  # type: ignore[assignment]
        return of[f"carousel_{name}", tuple(sorted((*model, *labels)))]

    fp32 = ("variant", "fp32")
    assert value("sessions_active", of=during) == 1  # type: ignore[arg-type]
    assert value("sessions_active") == 0
    assert value("sessions_opened_total") == 1
    assert value("sessions_closed_total", ("reason", "client")) == 1
    assert value("tokens_total", ("request", "feed")) == 2
    assert value("tokens_total", ("request", "generate")) == len(tokens)
    assert value("request_latency_seconds_count", ("request", "feed")) == 1
    assert value("request_latency_seconds_count", ("request", "generate")) == 1
    assert value("time_to_first_token_seconds_count") == 1
    # the start token and the two fed tokens, then each generated token, to compute what follows it
    assert value("steps_total", ("graph", "step"), fp32) == 3 + len(tokens)
    assert value("batch_size_count", ("graph", "encoder"), fp32) == 1
    assert value("queue_depth", fp32) == 0
    assert value("models_served") == 1
    assert value("inter_token_latency_seconds_count") >= 1
    assert value("batch_assembly_seconds_count", ("graph", "step"), fp32) == value(
        "step_latency_seconds_count", ("graph", "step"), fp32
    )
    assert value("slots_used", fp32, of=during) == 1  # type: ignore[arg-type]
    assert value("slots_used", fp32) == 0
    assert value("session_state_bytes", fp32) > 2 * 4 * 256
    assert value("model_loads_total", ("result", "ok")) == 1
    assert during["carousel_connections_active", ()] == 1
    assert after["carousel_connections_active", ()] == 0
    assert after["carousel_response_write_seconds_count", ()] >= 4
    assert [labels for name, labels in after if name == "carousel_build_info"]
    assert after["process_resident_memory_bytes", ()] > 1e7
    buckets = [float(dict(labels)["le"]) for name, labels in after if name.endswith("step_latency_seconds_bucket")]
    assert min(buckets) == 0.0001
    assert 10.0 in buckets
    errors = ("carousel_errors_total", (("code", "INVALID_ARGUMENT"), ("model", "g2p-en"), ("reason", "UNKNOWN_TOKEN")))
    assert after[errors] == 1


async def test_metrics_of_durability_tell_what_was_stored_and_what_waits(g2p_repository: Path, tmp_path: Path) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 0.3}
    with local_service(g2p_repository, flags) as service:
        async with wire(service.target) as stream:
            opening = g2p()
            opening.durability = pb.DURABILITY_CHECKPOINT
            await stream.ask("m", open=opening)
            await stream.ask("m", feed=pb.Feed(tokens=["K"], position=0))
            await stream.ask("m", feed=pb.Feed(tokens=["K"], position=0))
            waiting = scrape(service)

            def is_stored() -> bool:
                found = scrape(service)
                return found["carousel_checkpoints_total", ()] >= 1 and not found["carousel_checkpoint_lag_seconds", ()]

            await until(is_stored)
            stored = scrape(service)  # not the scrape before, during which the session may have been stored
            async with grpc.aio.insecure_channel(service.target) as channel:
                stub = sessions_pb2_grpc.SessionsStub(channel)
                snapshot = (await stub.Snapshot(sessions_pb2.SessionsSnapshotRequest(session_id="m"))).snapshot
            metrics = scrape(service)
    assert 0 < waiting["carousel_checkpoint_lag_seconds", ()] < 5
    assert stored["carousel_checkpoint_lag_seconds", ()] == 0
    assert 0 < stored["carousel_checkpoint_delay_seconds_sum", ()] < 5
    assert stored["carousel_snapshot_bytes_sum", (("use", "checkpoint"),)] > 1000
    assert metrics["carousel_snapshot_bytes_sum", (("use", "snapshot"),)] == len(snapshot)
    replayed = (("model", "g2p-en"), ("request", "feed"), ("version", "1"))
    assert metrics["carousel_replayed_requests_total", replayed] == 1
    assert metrics["carousel_store_up", ()] == 1


async def test_sessions_that_are_closed_while_spilled_leave_the_metric_of_spilled_sessions(
    g2p_repository: Path, tmp_path: Path
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "max-slots": 2}
    with local_service(g2p_repository, flags) as service:
        async with wire(service.target) as stream:
            opening = g2p()
            opening.on_disconnect.action = pb.DISCONNECT_ACTION_KEEP
            for name in "abcd":
                await stream.ask(name, open=opening)
            during = scrape(service)
            async with grpc.aio.insecure_channel(service.target) as channel:
                for name in "abcd":
                    await sessions_pb2_grpc.SessionsStub(channel).Close(
                        sessions_pb2.SessionsCloseRequest(session_id=name)
                    )
        after = scrape(service)
    spilled = ("carousel_sessions_spilled", (("model", "g2p-en"), ("version", "1")))
    assert during[spilled] == 2
    assert after[spilled] == 0


def test_no_label_of_a_metric_can_be_chosen_by_clients() -> None:
    known = {"model", "version", "variant", "graph", "request", "reason", "code", "method", "source", "use"}
    known |= {"operation", "result", "python_version", "onnxruntime_version", "file"}
    for instruments in Metrics().sections.values():
        for instrument in instruments:
            assert set(instrument.label_names) <= known


def test_the_reference_of_metrics_is_up_to_date() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), "run ./scripts/generate"


async def test_reflection_describes_every_service(shipped_service: LocalService) -> None:
    async with grpc.aio.insecure_channel(shipped_service.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="carousel.v1.Inference"))
        files = (await call.read()).file_descriptor_response.file_descriptor_proto
        call.cancel()
    assert {"carousel.v1.Inference", "carousel.v1.Sessions", "carousel.v1.Models", "grpc.health.v1.Health"} <= listed
    assert "carousel/v1/inference.proto" in {FileDescriptorProto.FromString(file).name for file in files}


async def test_sigterm_drains_the_server_and_exits_with_0(
    tiny_repository: Path,
) -> None:
    with local_service(tiny_repository, {"shutdown-grace-s": 20}) as service:
        async with wire(service.target) as stream, grpc.aio.insecure_channel(service.target) as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            await stream.ask("quiet", open=lm())
            await stream.ask("long", open=lm("tiny-endless"))
            generate = await stream.send("long", generate=pb.Generate(decoding=pb.Decoding(max_tokens=20_000)))
            last = await stream.read()
            service.process.send_signal(signal.SIGTERM)
            while (await health.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass
            new = await stream.send("new", open=lm())
            refused, closed = None, set()

            async def read_to_the_end() -> None:
                nonlocal last, refused
                while True:
                    response = await stream.read()
                    if response.request_id == generate:
                        last = response
                    elif response.request_id == new:
                        refused = response.error
                    elif response.HasField("go_away"):
                        assert response.go_away.grace.ToSeconds() == 20
                    else:
                        assert response.closed.reason == pb.CLOSE_REASON_SHUTDOWN
                        closed.add(response.session_id)

            with pytest.raises(grpc.aio.AioRpcError, match="the server is shutting down: open a new stream") as ended:
                await read_to_the_end()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (last.position, last.generated.finish_reason) == (20_000, pb.FINISH_REASON_MAX_TOKENS)
            assert refused is not None
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE.value[0], "SHUTTING_DOWN")
            assert refused.message == "the server is shutting down: send it to another server"
            assert closed == {"long", "quiet"}
        assert service.process.wait(30) == 0
        events = [line["event"] for line in service.log if line["event"] != "call.ended"]
        assert events[-2:] == ["server.draining", "server.stopped"]


async def test_a_generation_over_the_grace_time_is_cut_off(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"shutdown-grace-s": 0.2}) as service:
        async with wire(service.target) as stream:
            await stream.ask("endless", open=lm("tiny-endless"))
            await stream.send("endless", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
            await stream.read()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0


async def test_a_client_may_ping_often_also_between_calls(shipped_service: LocalService) -> None:
    # The test writes the HTTP/2 frames itself (RFC 9113, section 4.1), because gRPC clients ping at most every 10 s. A
    # server with gRPC's defaults answers the third of these pings with GOAWAY.
    ping, goaway, ack, num_pings = 6, 7, 1, 6
    host, _, port = shipped_service.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">IBBI", 0, 4, 0, 0)[1:])
    acks = 0
    for number in range(num_pings):
        writer.write(struct.pack(">IBBI", 8, ping, 0, 0)[1:] + number.to_bytes(8, "big"))
        while acks <= number:
            header = await reader.readexactly(9)
            length, kind, flags, _ = struct.unpack(">IBBI", b"\0" + header)
            await reader.readexactly(length)
            assert kind != goaway
            acks += kind == ping and flags == ack
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("flag", ["--port", "--health-port", "--metrics-port"])
def test_a_port_in_use_is_an_error_that_names_it(tiny_repository: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = {"--port": "0", "--health-port": "0", "--metrics-port": "0", flag: str(port)}
        flags = [part for pair in free.items() for part in pair]
        done = run("service", "--models", str(tiny_repository), "--store", "memory", *flags)
    assert done.returncode == 1
    (output,) = [line for line in done.stderr.decode().splitlines() if "127.0.0.1" in line]
    assert f"cannot listen on 127.0.0.1:{port}: " in output
    assert "address already in use" in output.lower()
    assert b"GRPC" not in done.stderr


def test_a_missing_repository_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROUSEL_MODELS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CAROUSEL_STORE", "memory")
    done = run("service")
    assert done.returncode == 1
    assert f"models = {tmp_path / 'nowhere'} is not a folder" in done.stderr.decode()


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_a_data_file_that_cannot_be_used_ends_the_start_with_what_to_do(
    tiny_repository: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "sessions" / "data.mdb"
    if damage == "folder":
        path.mkdir(parents=True)
    else:
        with closing(LmdbStore(path.parent)) as store:
            store.write([Write("a", 1, bytes(100_000), 60.0)])
        os.truncate(path, path.stat().st_size // 2)
    flags = ("--models", str(tiny_repository), "--port", "0", "--metrics-port", "0", "--data-folder", str(tmp_path))
    done = run("service", *flags)
    errors = done.stderr.decode()
    assert done.returncode == 1
    assert "server.cannot_start" in errors
    assert f"{path} is {'not a regular file' if damage == 'folder' else 'cut off'}" in errors
    assert "move it away" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once_and_cleanly(tiny_repository: Path, number: signal.Signals) -> None:
    with local_service(tiny_repository) as service:
        service.process.send_signal(number)
        assert service.process.wait(10) == 0
        assert [line["event"] for line in service.log][-1] == "server.stopped"
        assert not [line for line in service.log if line["level"] == "error"]

"""The server under unusual conditions: bursts of calls, odd input, signals, and folders that come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from carousel.v1 import error_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from service.api.principals import new_token
from service.api.status import METADATA_KEY
from tests import fork_server
from tests.bundles import write_language_model
from tests.conftest import SHIPPED
from tests.end_to_end.wire import lm, wire
from tests.services import local_service
from tests.waiting import until, wait_until

Code = grpc.StatusCode
LOCAL: list[tuple[str, int]] = [("grpc.use_local_subchannel_pool", 1)]


def events(service: LocalService) -> list[object]:
    """Returns the event names of the service's log lines."""
    return [line["event"] for line in service.log]


async def listed(stub: Any) -> str:
    try:
        await stub.List(models_pb2.ModelsListRequest(), timeout=60)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def streamed(stub: Any) -> str:
    """Opens a session on a stream, and ends the stream. Returns "OK", or the call's error."""
    call = stub.Stream(timeout=60)
    try:
        await call.write(pb.StreamRequest(request_id=1, open=lm()))
        response = await call.read()
        await call.done_writing()
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK" if isinstance(response, pb.StreamResponse) and response.HasField("opened") else str(await call.code())


async def test_three_thousand_calls_at_once_all_pass(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        channels = [grpc.aio.insecure_channel(service.target, options=LOCAL) for _ in range(5)]
        stubs = [models_pb2_grpc.ModelsStub(channel) for channel in channels]
        found = await asyncio.gather(*(listed(stubs[index % 5]) for index in range(3000)))
        assert Counter(found) == {"OK": 3000}
        others = [inference_pb2_grpc.InferenceStub(channel) for channel in channels]
        found = await asyncio.gather(*(streamed(others[index % 5]) for index in range(1000)))
        for channel in channels:
            await channel.close()
        assert Counter(found) == {"OK": 1000}


async def test_calls_over_the_limit_are_refused_with_a_reason_and_a_delay(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-calls": 2}) as service:
        async with wire(service.target) as one, wire(service.target) as other:
            await one.ask("a", open=lm())
            await other.ask("b", open=lm())
            async with grpc.aio.insecure_channel(service.target) as channel:
                stub: models_pb2_grpc.ModelsAsyncStub = models_pb2_grpc.ModelsStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.List(models_pb2.ModelsListRequest())
                assert raised.value.code() is Code.RESOURCE_EXHAUSTED
                metadata = dict(raised.value.trailing_metadata() or ())
                error = error_pb2.Error.FromString(metadata[METADATA_KEY])
                assert (error.reason, error.retry_delay.seconds) == ("TOO_MANY_CALLS", 1)
                assert "2 calls are in progress" in error.message
                one.call.cancel()

                async def is_answered() -> bool:
                    return await listed(stub) == "OK"

                await until(is_answered)  # a call that has ended makes room
            assert (await other.ask("b", feed=pb.Feed(token_ids=[5]))).HasField("fed")


async def test_names_of_any_length_are_refused_in_readable_words(tiny_service: LocalService) -> None:
    async with wire(tiny_service.target) as stream, grpc.aio.insecure_channel(tiny_service.target) as channel:
        models: models_pb2_grpc.ModelsAsyncStub = models_pb2_grpc.ModelsStub(channel)
        await stream.ask("other", open=lm())
        for length in (5000, 4_000_000):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await models.Get(models_pb2.ModelsGetRequest(model="m" * length))
            assert raised.value.code() is Code.NOT_FOUND
            assert str(raised.value.details()).startswith("model = 'mmm")
            refused = await stream.ask("s", open=pb.Open(model="m" * length))
            assert refused.error.reason == "MODEL_NOT_FOUND"
            assert len(refused.error.message) < 400
            refused = await stream.ask("other", feed=pb.Feed(tokens=["t" * length]))
            assert refused.error.reason == "UNKNOWN_TOKEN"
        assert (await stream.ask("other", feed=pb.Feed(token_ids=[5]))).HasField("fed"), "the stream goes on"
        await stream.ask("other", close=pb.Close())


async def test_an_id_that_no_session_can_have_is_refused_before_the_store_is_asked(
    tiny_repository: Path, tmp_path: Path
) -> None:
    with local_service(tiny_repository, {"store": "lmdb", "data-folder": tmp_path}) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            stub: Any = sessions_pb2_grpc.SessionsStub(channel)
            names = ("Get", "Close", "Snapshot", "Fork", "Rewind", "GetState", "SetState")
            for name, session_id in product(names, ("", "x" * 129, "a\0b", "x" * 100_000)):
                request = getattr(sessions_pb2, f"Sessions{name}Request")(session_id=session_id)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await getattr(stub, name)(request)
                assert raised.value.code() is Code.INVALID_ARGUMENT, name
                assert str(raised.value.details()).startswith("session_id = ")
        assert "store.failed" not in events(service)


async def test_sighup_reads_tokens_certificates_and_new_versions_again(tmp_path: Path) -> None:
    models, tokens = tmp_path / "models", tmp_path / "tokens.toml"
    authority = trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write_cert() -> None:
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)

    write_cert()
    write_language_model(models, model="lm")
    first, second = new_token(), new_token()
    tokens.write_text(f'[principals.a]\ntoken_sha256 = ["{first[1]}"]\n')
    flags = {"tokens-file": tokens, "tls-cert-file": cert, "tls-key-file": key}
    with local_service(models, flags) as service:

        async def found(token: str) -> list[int]:
            credentials = grpc.composite_channel_credentials(
                grpc.ssl_channel_credentials(authority.cert_pem.bytes()), grpc.access_token_call_credentials(token)
            )
            async with grpc.aio.secure_channel(service.target, credentials, options=LOCAL) as channel:
                stub: models_pb2_grpc.ModelsAsyncStub = models_pb2_grpc.ModelsStub(channel)
                return [info.version for info in (await stub.List(models_pb2.ModelsListRequest())).models]

        def reload() -> None:
            count = events(service).count("server.reloaded")
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: events(service).count("server.reloaded") > count)

        assert await found(first[0]) == [1]
        tokens.write_text(f'[principals.a]\ntoken_sha256 = ["{second[1]}"]\n')
        write_language_model(models, model="lm", version=2, seed=2)
        write_cert()
        reload()
        assert {"tokens.reloaded", "tls.reloaded", "model.loaded"} <= set(events(service))
        assert await found(second[0]) == [1, 2]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await found(first[0])
        assert raised.value.code() is Code.UNAUTHENTICATED
        tokens.write_text("[")
        cert.write_text("no certificate")
        models.rename(tmp_path / "away")
        reload()
        assert {"tokens.not_reloaded", "tls.not_reloaded", "models.folder_lost"} <= set(events(service))
        assert await found(second[0]) == [1, 2], "what was there before holds"
        assert service.stop() == 0


async def test_sighup_does_not_disturb_a_stream(tiny_repository: Path) -> None:
    with local_service(tiny_repository) as service:
        async with wire(service.target) as stream:
            await stream.ask("a", open=lm())
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "server.reloaded" in events(service))
            assert (await stream.ask("a", feed=pb.Feed(token_ids=[5]))).position == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_server_at_once(tiny_repository: Path, second: signal.Signals) -> None:
    with local_service(tiny_repository, {"shutdown-grace-s": 60}) as service:
        async with wire(service.target) as stream:
            await stream.ask("endless", open=lm("tiny-endless"))
            await stream.send("endless", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000)))
            await stream.read()
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "server.draining" in events(service))
            service.process.send_signal(signal.SIGHUP)
            service.process.send_signal(second)
            assert service.process.wait(5) == -second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_server_starts_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "service", "--models", str(SHIPPED), "--port", "0", "--metrics-port", "0"]
    command += ["--store", "lmdb", "--data-folder", str(tmp_path / "data"), "--log-format", "json"]
    with log.open("wb") as file:
        process = fork_server.start(command, file)
    try:
        wait_until(lambda: "server.starting" in log.read_text(), 60.0)
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert '"server.stopped"' in text.splitlines()[-1]
    assert '"level": "error"' not in text


async def test_a_folder_that_is_missing_for_a_moment_does_not_end_the_watch(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_language_model(models, model="lm")
    with local_service(models, {"watch-models-s": 0.05}) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            stub: models_pb2_grpc.ModelsAsyncStub = models_pb2_grpc.ModelsStub(channel)
            await stub.Unload(models_pb2.ModelsUnloadRequest(model="lm", version=1))
            os.rename(models, tmp_path / "away")
            wait_until(lambda: "models.folder_lost" in events(service))
            os.rename(tmp_path / "away", models)
            write_language_model(models, model="lm", version=2, seed=2)
            wait_until(lambda: events(service).count("model.loaded") == 2)
            versions = [info.version for info in (await stub.List(models_pb2.ModelsListRequest())).models]
        assert versions == [2], "what was unloaded stays unloaded"
        assert events(service).count("models.folder_lost") == 1
        assert events(service).count("models.folder_found") == 1

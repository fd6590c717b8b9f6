"""Tests every claim of docs/security.md that needs a real service."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from carousel import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples.local_service import LocalService
from examples.ports import free_port
from tests.fork_server import run
from tests.services import local_service
from tests.waiting import wait_until

ADMIN, ALICE, BOB, SLOW = "admins-own-token", "alices-own-token", "bobs-own-token", "slows-own-token"
TOKENS = {
    "admin": (ADMIN, "admin = true"),
    "alice": (ALICE, "max_sessions = 3"),
    "bob": (BOB, ""),
    "slow": (SLOW, "max_requests_per_s = 2"),
}
MODEL = "tiny-bos"


def write_tokens(path: Path) -> None:
    entries = []
    for name, (token, more) in TOKENS.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        entries.append(f'[principals.{name}]\ntoken_sha256 = ["{digest}"]\n{more}\n')
    path.write_text("\n".join(entries))


@pytest.fixture(scope="module")
def guarded(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """Yields a service that requires tokens and stores sessions in LMDB. Afterwards its log must contain no token."""
    folder = tmp_path_factory.mktemp("guarded")
    write_tokens(folder / "tokens.toml")
    flags = {"tokens-file": folder / "tokens.toml", "log-level": "debug", "store": "lmdb", "data-folder": folder}
    with local_service(tiny_repository, flags) as service:
        yield service
        log = Path(service.log_file.name).read_text()
        assert "session.opened" in log, "it tells much"
        for secret in (ADMIN, ALICE, BOB, SLOW, hashlib.sha256(ALICE.encode()).hexdigest()):
            assert secret not in log


def secured(target: str, token: str | None) -> grpc.Channel:
    """Returns a channel to this machine. token: sent with each call; None sends none."""
    if token is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(
        target,
        grpc.composite_channel_credentials(grpc.local_channel_credentials(), grpc.access_token_call_credentials(token)),
    )


def answer(call: Callable[[Any], Any], request: Any) -> Any:
    """Makes a call. Returns its response, or the list of its responses."""
    response = call(request)
    return list(response) if isinstance(response, Iterator) else response


def all_calls(channel: grpc.Channel) -> dict[str, Callable[[], Any]]:
    """Returns one call for each served method, except health."""
    calls: dict[str, Callable[[], Any]] = {}
    modules: list[tuple[Callable[[grpc.Channel], Any], str, Any]] = [
        (inference_pb2_grpc.InferenceStub, "Inference", pb),
        (sessions_pb2_grpc.SessionsStub, "Sessions", sessions_pb2),
        (models_pb2_grpc.ModelsStub, "Models", models_pb2),
    ]
    for make_stub, name, messages in modules:
        stub = make_stub(channel)
        for method in messages.DESCRIPTOR.services_by_name[name].methods:
            call, request = getattr(stub, method.name), getattr(messages, method.input_type.name)()
            calls[f"{name}.{method.name}"] = partial(
                answer, call, iter([request]) if method.client_streaming else request
            )
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    calls["reflection"] = partial(answer, stub.ServerReflectionInfo, iter([request]))
    return calls


@pytest.mark.parametrize("token", [None, "nobodys-own-token"])
def test_every_method_is_closed_to_strangers(guarded: LocalService, token: str | None) -> None:
    with secured(guarded.target, token) as channel:
        calls = all_calls(channel)
        assert len(calls) >= 15
        for name, call in calls.items():
            with pytest.raises(grpc.RpcError) as refusal:
                call()
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, name


def test_health_is_open_to_strangers(guarded: LocalService) -> None:
    with secured(guarded.target, None) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_a_client_with_a_token_is_served_by_every_call(guarded: LocalService) -> None:
    with Client(guarded.target, token=BOB) as client:
        assert MODEL in {model.model for model in client.models()}
        assert len(list(client.generate(MODEL, max_tokens=4))) <= 4
        with client.session(MODEL) as session:
            session.feed([2, 3])
            assert session.position == 2
    with Client(guarded.target) as client, pytest.raises(UnauthenticatedError, match="has no authorization"):
        client.models()


async def test_the_asyncio_client_brings_its_token_too(guarded: LocalService) -> None:
    async with AsyncClient(guarded.target, token=BOB) as client, client.session(MODEL) as session:
        assert (await session.feed([2])).position == 1


def test_a_token_never_goes_in_plain_text_to_another_machine(tiny_repository: Path, tmp_path: Path) -> None:
    """An address of this machine that other machines can reach counts as another machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; finds the address of this machine that others reach
        except OSError:
            pytest.skip("this machine has no address but the loopback interface's")
        address = probe.getsockname()[0]
    write_tokens(tmp_path / "tokens.toml")
    flags = {"host": address, "tokens-file": tmp_path / "tokens.toml"}
    with local_service(tiny_repository, flags) as service:
        target = f"{address}:{service.target.rpartition(':')[2]}"
        with Client(target, token=BOB, timeout=2.0) as client, pytest.raises((UnavailableError, DeadlineExceededError)):
            client.models()
        with Client(target, timeout=2.0) as client, pytest.raises(UnauthenticatedError):
            client.models()


def test_sessions_of_others_are_not_found(guarded: LocalService) -> None:
    """No call finds them, under any name. Two principals may use the same name."""
    with (
        Client(guarded.target, token=ALICE) as alice,
        Client(guarded.target, token=BOB) as bob,
        secured(guarded.target, BOB) as channel,
    ):
        stub = sessions_pb2_grpc.SessionsStub(channel)
        with alice.session(MODEL, session_id="same", durability="checkpoint") as one:
            one.feed([2, 3, 2])
            calls = {
                "Get": sessions_pb2.SessionsGetRequest,
                "Close": sessions_pb2.SessionsCloseRequest,
                "Snapshot": sessions_pb2.SessionsSnapshotRequest,
                "Fork": sessions_pb2.SessionsForkRequest,
                "Rewind": sessions_pb2.SessionsRewindRequest,
                "GetState": sessions_pb2.SessionsGetStateRequest,
                "SetState": sessions_pb2.SessionsSetStateRequest,
            }
            served = {method.name for method in sessions_pb2.DESCRIPTOR.services_by_name["Sessions"].methods}
            assert served == set(calls) | {"List", "Restore", "CloseAll"}, (
                "a call that names a session needs a row here"
            )
            for name, request in calls.items():
                with pytest.raises(grpc.RpcError) as refusal:
                    getattr(stub, name)(request(session_id="same"))
                assert refusal.value.code() is grpc.StatusCode.NOT_FOUND, name
                with pytest.raises(grpc.RpcError) as refusal:
                    getattr(stub, name)(request(session_id="alice/same"))
                assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            assert "same" not in {info.session_id for info in bob.sessions.list()}
            with pytest.raises(NotFoundError), bob.resume("same") as stolen:
                stolen.feed([2])
            with bob.session(MODEL, session_id="same") as other:
                other.feed([4])
                assert other.position == 1
                assert {info.session_id: info.position for info in bob.sessions.list()} == {"same": 1}
                assert {info.session_id: info.position for info in alice.sessions.list()} == {"same": 3}
            one.feed([2])
            assert one.position == 4, "nobody has touched it"


def test_an_admin_sees_and_ends_sessions_of_others(guarded: LocalService) -> None:
    with (
        Client(guarded.target, token=ALICE) as alice,
        Client(guarded.target, token=ADMIN) as admin,
        alice.session(MODEL, session_id="watched") as session,
    ):
        session.feed([2])
        listed = {info.session_id: info for info in admin.sessions.list()}
        assert listed["alice/watched"].position == 1
        assert admin.sessions.get("alice/watched").position == 1
        admin.sessions.close("alice/watched")
        with pytest.raises(NotFoundError):
            admin.sessions.get("alice/watched")


@pytest.mark.parametrize("how", ["step", "resume", "open"])
@pytest.mark.parametrize(
    ("token", "words"),
    [(ADMIN, "an admin may use Sessions and Watch on it"), (BOB, "must be 1 to 128")],
)
def test_an_admin_that_feeds_a_session_of_others_is_refused_with_the_reason(
    guarded: LocalService, how: str, token: str, words: str
) -> None:
    with (
        Client(guarded.target, token=ALICE) as alice,
        Client(guarded.target, token=token) as other,
        alice.session(MODEL, session_id="fed") as session,
    ):
        session.feed([2])
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: other.step("alice/fed", [2]),
            "resume": lambda: other.resume("alice/fed").feed([2]),
            "open": lambda: other.session(MODEL, session_id="alice/fed").feed([2]),
        }
        with pytest.raises(InvalidArgumentError, match=words) as refusal:
            calls[how]()
        assert refusal.value.field == "session_id"
        assert session.position == 1


@pytest.mark.parametrize(
    ("token", "expected"), [(BOB, grpc.StatusCode.PERMISSION_DENIED), (ADMIN, grpc.StatusCode.NOT_FOUND)]
)
def test_only_an_admin_loads_and_unloads_models(guarded: LocalService, token: str, expected: grpc.StatusCode) -> None:
    with secured(guarded.target, token) as channel:
        stub = models_pb2_grpc.ModelsStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Load(models_pb2.ModelsLoadRequest(model="none", version=1))
        assert refusal.value.code() is expected
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Unload(models_pb2.ModelsUnloadRequest(model="none", version=1))
        assert refusal.value.code() is expected


def test_a_principal_cannot_exceed_its_number_of_sessions(guarded: LocalService) -> None:
    with Client(guarded.target, token=ALICE) as alice, Client(guarded.target, token=BOB) as bob:
        sessions = [alice.session(MODEL) for _ in range(3)]
        for session in sessions:
            session.feed([2])
        with pytest.raises(ResourceExhaustedError, match="principal 'alice' has 3 sessions open, the limit") as refusal:
            alice.session(MODEL).feed([2])
        assert refusal.value.reason == "TOO_MANY_SESSIONS"
        with bob.session(MODEL) as other:
            other.feed([2])
        sessions.pop().close()
        with alice.session(MODEL) as session:
            session.feed([2])
        for session in sessions:
            session.close()


def test_a_principal_cannot_exceed_its_request_rate(guarded: LocalService) -> None:
    with Client(guarded.target, token=SLOW) as slow, Client(guarded.target, token=BOB) as bob:
        with slow.session(MODEL) as session:

            def ask_often() -> None:
                for _ in range(10):
                    session.feed([2])

            with pytest.raises(ResourceExhaustedError, match="may send 2 requests per second") as refusal:
                ask_often()
            assert refusal.value.reason == "RATE_LIMITED"
            assert refusal.value.retry_delay is not None
            reached = session.position
            time.sleep(refusal.value.retry_delay.total_seconds() + 0.05)  # as long as the server has said
            session.feed([2])
            assert session.position == reached + 1, "what was refused changed nothing"
        with bob.session(MODEL) as session:
            for _ in range(10):
                session.feed([2])
            assert session.position == 10


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


def write_certificate(ca: trustme.CA, folder: Path) -> dict[str, Path]:
    """Writes a server's certificate by this authority. Each file is replaced atomically. Returns the server's flags."""
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    files = {"tls-cert-file": folder / "server.pem", "tls-key-file": folder / "server.key"}
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem.new")
    certificate.private_key_pem.write_to_path(folder / "server.key.new")
    for path in files.values():
        os.replace(f"{path}.new", path)
    return files


def trusting(ca: trustme.CA, own: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        ca.cert_pem.bytes(),
        own.private_key_pem.bytes() if own else None,
        own.cert_chain_pems[0].bytes() if own else None,
    )


def test_a_server_with_a_certificate_accepts_only_tls(tiny_repository: Path, tmp_path: Path, ca: trustme.CA) -> None:
    write_tokens(tmp_path / "tokens.toml")
    flags = {**write_certificate(ca, tmp_path), "tokens-file": tmp_path / "tokens.toml"}
    with local_service(tiny_repository, flags) as service:
        with Client(service.target, credentials=trusting(ca), token=BOB) as client, client.session(MODEL) as session:
            session.feed([2])
        with Client(service.target, credentials=trusting(ca)) as client, pytest.raises(UnauthenticatedError):
            client.models()
        with Client(service.target, timeout=3.0) as client, pytest.raises(UnavailableError):
            client.models()
        other = trusting(trustme.CA())
        with Client(service.target, credentials=other, timeout=3.0) as client, pytest.raises(UnavailableError):
            client.models()


def test_with_a_client_authority_only_its_certificates_are_accepted(
    tiny_repository: Path, tmp_path: Path, ca: trustme.CA
) -> None:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    flags = {**write_certificate(ca, tmp_path), "tls-client-ca-file": tmp_path / "ca.pem"}
    with local_service(tiny_repository, flags) as service:
        known = trusting(ca, ca.issue_cert("client"))
        with Client(service.target, credentials=known) as client:
            assert client.models()
        for stranger in (trusting(ca), trusting(ca, trustme.CA().issue_cert("client"))):
            with Client(service.target, credentials=stranger, timeout=3.0) as client, pytest.raises(UnavailableError):
                client.models()


def test_certificates_are_replaced_without_a_restart(tiny_repository: Path, tmp_path: Path, ca: trustme.CA) -> None:
    """Existing connections stay open, and invalid files change nothing."""
    flags = write_certificate(ca, tmp_path)
    following = trustme.CA()
    with local_service(tiny_repository, flags) as service:

        def is_served(authority: trustme.CA) -> bool:
            with Client(service.target, credentials=trusting(authority), timeout=3.0) as client:
                try:
                    return bool(client.models())
                except UnavailableError:
                    return False

        with Client(service.target, credentials=trusting(ca)) as client, client.session(MODEL) as session:
            session.feed([2])
            assert is_served(ca)
            write_certificate(following, tmp_path)
            wait_until(lambda: is_served(following))  # one wire checks before a handshake, the other once a second
            assert not is_served(ca)
            flags["tls-key-file"].write_text("no key")
            assert is_served(following)
            wait_until(lambda: "tls.not_reloaded" in [line["event"] for line in service.log])
            assert is_served(following)
            session.feed([2])
            assert session.position == 2
        events = [line["event"] for line in service.log]
    assert "tls.reloaded" in events
    assert "tls.not_reloaded" in events


@pytest.mark.parametrize("spoil", ["tls-cert-file", "tls-key-file"])
def test_an_invalid_certificate_stops_the_start(
    tiny_repository: Path, tmp_path: Path, ca: trustme.CA, spoil: str
) -> None:
    flags = write_certificate(ca, tmp_path)
    flags[spoil].write_text("nonsense")
    with (
        pytest.raises(RuntimeError, match=rf"(?s)code 1.*{flags[spoil].name} is not PEM"),
        local_service(tiny_repository, flags),
    ):
        pass


def test_an_invalid_token_file_stops_the_start(tiny_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text("nonsense")
    with (
        pytest.raises(RuntimeError, match=r"(?s)code 1.*is not valid TOML"),
        local_service(tiny_repository, {"tokens-file": tmp_path / "tokens.toml"}),
    ):
        pass


def test_reflection_and_metrics_can_be_closed(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"reflection": False, "metrics": False}) as service:
        started = next(line for line in service.log if line["event"] == "server.started")
        assert started["metrics_port"] == 0
        with grpc.insecure_channel(service.target) as channel:
            with pytest.raises(grpc.RpcError) as refusal:
                all_calls(channel)["reflection"]()
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_over_its_limit_is_refused(tiny_repository: Path) -> None:
    with (
        local_service(tiny_repository, {"max-metadata-bytes": 4096}) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        stub = models_pb2_grpc.ModelsStub(channel)
        assert stub.List(models_pb2.ModelsListRequest(), metadata=(("x-some", "y" * 2000),)).models
        with pytest.raises(grpc.RpcError) as refusal:
            stub.List(models_pb2.ModelsListRequest(), metadata=(("x-some", "y" * 8000),))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.List(models_pb2.ModelsListRequest()).models


@pytest.mark.parametrize("with_tls", [False, True])
def test_a_probe_by_the_command_line_reports_whether_the_server_serves(
    tiny_repository: Path, tmp_path: Path, ca: trustme.CA, with_tls: bool
) -> None:
    port, health_port = free_port(), free_port()
    flags: dict[str, object] = {"port": port}
    if with_tls:
        flags |= {**write_certificate(ca, tmp_path), "health-port": health_port}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]

    before = run("service", "health", *arguments)
    assert before.returncode == 1
    assert b"UNAVAILABLE" in before.stderr
    with local_service(tiny_repository, flags):
        during = run("service", "health", *arguments)
        assert (during.returncode, during.stdout) == (0, b"SERVING\n")


def test_a_probe_of_tls_without_a_port_for_health_says_what_is_missing(tmp_path: Path, ca: trustme.CA) -> None:
    flags = write_certificate(ca, tmp_path)
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = run("service", "health", *arguments)
    assert done.returncode == 2
    assert b"health_port is not set" in done.stderr


def test_a_token_made_by_the_command_line_is_accepted(tiny_repository: Path, tmp_path: Path) -> None:
    made = run("service", "token", "app")
    token = made.stderr.decode().rpartition(": ")[2].strip()
    assert token.encode() not in made.stdout
    (tmp_path / "tokens.toml").write_bytes(made.stdout)
    with (
        local_service(tiny_repository, {"tokens-file": tmp_path / "tokens.toml"}) as service,
        Client(service.target, token=token) as client,
    ):
        assert client.models()


def test_a_server_without_authentication_logs_a_warning(tiny_repository: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.toml")
    for more, is_told in (({}, True), ({"tokens-file": tmp_path / "tokens.toml"}, False)):
        with local_service(tiny_repository, {"host": "0.0.0.0", **more}) as service:
            hints = [str(line["hint"]) for line in service.log if line["event"] == "server.open_to_all"]
            assert bool(hints) is is_told
            assert all("set tokens_file" in hint for hint in hints)


def test_a_slash_in_a_session_id_is_refused_to_all(tiny_service: LocalService) -> None:
    with Client(tiny_service.target) as client, pytest.raises(InvalidArgumentError, match="must be 1 to 128"):
        client.session(MODEL, session_id="a/b").feed([2])

"""A real service identifies clients by their certificates, and ignores clients that only claim to have one."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from carousel import AsyncClient, Client, UnavailableError
from carousel.v1 import models_pb2, models_pb2_grpc
from examples.local_service import LocalService
from tests.certificates import Authority, Issued
from tests.end_to_end.test_security import all_calls
from tests.fork_server import run
from tests.services import local_service
from tests.waiting import wait_until

ALICE = "alices-own-token"
MODEL = "tiny-bos"
PRINCIPALS = f"""
[principals.admin]
certificate_names = ["spiffe://corp/admin"]
admin = true

[principals.alice]
token_sha256 = ["{hashlib.sha256(ALICE.encode()).hexdigest()}"]
certificate_names = ["spiffe://corp/alice"]

[principals.bob]
certificate_names = ["bob.example.com"]

[principals.carol]
certificate_names = ["CN=Carol, of accounts"]
"""
ONLY_TOKENS = "\n".join(line for line in PRINCIPALS.split("\n\n")[1].splitlines() if "certificate" not in line)
REFUSED = "UNAUTHENTICATED: the call has no authorization"
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A service that requires client certificates, and the authority that signs them. tokens: the file of
    principals."""

    service: LocalService
    authority: Authority
    tokens: Path

    def channel(self, own: Issued) -> grpc.Channel:
        return grpc.secure_channel(self.service.target, self.authority.credentials(own))


def write_files(authority: Authority, folder: Path, principals: str = PRINCIPALS) -> dict[str, object]:
    """Writes the files of a server that requires certificates of this authority. Returns the server's flags."""
    issued = authority.issue_server()
    files = {
        "tls-cert-file": issued.certificate,
        "tls-key-file": issued.key,
        "tls-client-ca-file": authority.certificate,
        "tokens-file": principals.encode(),
    }
    for name, content in files.items():
        (folder / f"{name}.new").write_bytes(content)
        os.replace(folder / f"{name}.new", folder / name)
    return {name: folder / name for name in files}


@pytest.fixture(scope="module")
def guarded(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    authority, folder = Authority(), tmp_path_factory.mktemp("guarded")
    flags = {**write_files(authority, folder), "max-metadata-bytes": 2048}
    with local_service(tiny_repository, flags) as service:
        yield Guarded(service, authority, folder / "tokens-file")
        assert not [line for line in service.log if line["level"] == "error"]


def who(channel: grpc.Channel, metadata: Metadata = ()) -> str:
    """Makes a call that only an admin may make. Returns "an admin", or the error, which names the principal."""
    try:
        models_pb2_grpc.ModelsStub(channel).Load(
            models_pb2.ModelsLoadRequest(model="none", version=1), metadata=tuple(metadata), timeout=10
        )
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "an admin"
        return f"{error.code().name}: {error.details()}"
    raise AssertionError("there is no such model")


def no_admin(name: str) -> str:
    return f"PERMISSION_DENIED: load needs an admin: principal '{name}' is not one"


def authorized(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def claimed(issued: Issued) -> list[str]:
    """Returns values of the header in which Envoy describes a client with this certificate, one for each form."""
    return [
        f'Hash={"0" * 64};Cert="{quote(issued.certificate, safe="")}"',
        f'By=x;Hash={"0" * 64};Subject="CN=x";URI=spiffe://corp/admin;DNS=bob.example.com',
        "URI=spiffe://corp/admin",
        "",
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"uris": ["spiffe://corp/admin"]}, "an admin"),
        ({"uris": ["spiffe://corp/alice"]}, no_admin("alice")),
        ({"dns": ["bob.example.com"]}, no_admin("bob")),
        ({"common": ["Carol, of accounts"]}, no_admin("carol")),
        ({"common": ["Carol, of accounts"], "dns": ["bob.example.com"]}, no_admin("bob")),
        ({"dns": ["bob.example.com"], "uris": ["urn:x", "spiffe://corp/alice"]}, no_admin("alice")),
    ],
)
def test_a_clients_certificate_names_its_principal(
    guarded: Guarded, names: dict[str, list[str]], expected: str
) -> None:
    with guarded.channel(guarded.authority.issue(**names)) as channel:
        assert who(channel) == expected


@pytest.mark.parametrize(
    "names",
    [
        {"dns": ["x;URI=spiffe://corp/admin", "spiffe://corp/admin", 'x";URI=spiffe://corp/admin;DNS="']},
        {"uris": ["https://x/y,By=z;URI=spiffe://corp/admin", "bob.example.com"]},
        {
            "common": [
                'x";URI=spiffe://corp/admin;DNS="',
            ]
        },
        {
            "dns": ["bob.example.com\0.evil.example"],
            "uris": ["spiffe://corp/admin\0x"],
            "common": ["Carol, of accounts\0"],
        },
        {"dns": ["x\r\nauthorization: Bearer alices-own-token"]},
        {"dns": ["BOB.example.com", "*.example.com"], "uris": ["spiffe://corp/admin/", "spiffe://corp/"]},
        {"common": ["Carol, of accounts", "x"]},
        {"common": ["bob.example.com"]},
    ],
    ids=",".join,
)
def test_a_name_that_only_resembles_a_principals_name_matches_no_principal(
    guarded: Guarded, names: dict[str, list[str]]
) -> None:
    """A name of another kind, or a name with more in it, matches no principal, whatever the authority signs."""
    with guarded.channel(guarded.authority.issue(**names)) as channel:
        assert who(channel).startswith(REFUSED)


def test_a_certificate_of_no_principal_is_refused_with_its_names(guarded: Guarded) -> None:
    own = guarded.authority.issue(uris=["spiffe://corp/dave"], common=["dave"])
    with guarded.channel(own) as channel:
        calls = all_calls(channel)
        assert "reflection" in calls
        for name, call in calls.items():
            with pytest.raises(grpc.RpcError) as refusal:
                call()
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
            assert "certificate, ['spiffe://corp/dave', 'CN=dave']: send `Bearer TOKEN`" in str(refusal.value.details())


def test_a_certificate_alone_is_enough_for_the_clients_and_for_reflection(guarded: Guarded) -> None:
    own = guarded.authority.issue(dns=["bob.example.com"])
    with Client(guarded.service.target, credentials=guarded.authority.credentials(own)) as client:
        with client.session(MODEL) as session:
            assert session.feed([2]).position == 1
            assert [info.position for info in client.sessions.list()] == [1]
        assert len(list(client.generate(MODEL, max_tokens=4))) <= 4
    with guarded.channel(own) as channel:
        assert all_calls(channel)["reflection"]()


async def test_a_certificate_alone_is_enough_for_the_asyncio_client(guarded: Guarded) -> None:
    credentials = guarded.authority.credentials(guarded.authority.issue(dns=["bob.example.com"]))
    async with AsyncClient(guarded.service.target, credentials=credentials) as client, client.session(MODEL) as session:
        assert (await session.feed([2])).position == 1


def test_a_certificate_alone_is_enough_for_the_command_line(guarded: Guarded, tmp_path: Path) -> None:
    own = guarded.authority.issue(dns=["bob.example.com"])
    files = {"ca": guarded.authority.certificate, "cert": own.certificate, "key": own.key}
    arguments = ["--target", guarded.service.target]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        arguments += [f"--{name}", str(tmp_path / name)]
    done = run("carousel", *arguments, "models")
    assert done.returncode == 0, done.stderr
    assert MODEL in done.stdout.decode()


def test_a_token_decides_over_a_certificate_and_must_be_right(guarded: Guarded) -> None:
    with guarded.channel(guarded.authority.issue(uris=["spiffe://corp/admin"])) as channel:
        assert who(channel, authorized(ALICE)) == no_admin("alice")
        assert (
            who(channel, authorized("wrong"))
            == "UNAUTHENTICATED: the token is unknown: no principal of this server has it"
        )
    with guarded.channel(guarded.authority.issue(common=["dave"])) as channel:
        assert who(channel, authorized(ALICE)) == no_admin("alice")


def test_what_a_client_with_a_certificate_claims_of_it_is_ignored(guarded: Guarded) -> None:
    admin = guarded.authority.issue(uris=["spiffe://corp/admin"])
    for own, expected in (({"dns": ["bob.example.com"]}, no_admin("bob")), ({"dns": ["dave"]}, REFUSED)):
        with guarded.channel(guarded.authority.issue(**own)) as channel:
            for claim in claimed(admin):
                assert who(channel, [("x-forwarded-client-cert", claim)]).startswith(expected)


@pytest.mark.parametrize("with_tls", [False, True])
def test_what_a_client_without_a_certificate_claims_is_ignored(
    tiny_repository: Path, tmp_path: Path, with_tls: bool
) -> None:
    authority = Authority()
    flags = write_files(authority, tmp_path, ONLY_TOKENS)
    names = ("tokens-file", "tls-cert-file", "tls-key-file") if with_tls else ("tokens-file",)
    claims = claimed(authority.issue(uris=["spiffe://corp/alice"], common=["alice"]))
    with (
        local_service(tiny_repository, {name: flags[name] for name in names}) as service,
        grpc.secure_channel(service.target, authority.credentials())
        if with_tls
        else grpc.insecure_channel(service.target) as channel,
    ):
        for claim in claims:
            assert who(channel, [("x-forwarded-client-cert", claim)]).startswith(REFUSED)
        assert who(channel, [*authorized(ALICE), ("x-forwarded-client-cert", claims[0])]) == no_admin("alice")


def test_what_a_client_claims_by_http_1_is_ignored(tiny_repository: Path, tmp_path: Path) -> None:
    """Starts its own server with the wire `envoy`, because only this wire accepts HTTP/1 and JSON."""
    authority = Authority()
    own, admin = authority.issue(dns=["bob.example.com"]), authority.issue(uris=["spiffe://corp/admin"])
    (tmp_path / "own").write_bytes(own.certificate + own.key)
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.load_cert_chain(tmp_path / "own")
    with local_service(tiny_repository, {**write_files(authority, tmp_path), "wire": "envoy"}) as service:
        for name in ("x-forwarded-client-cert", "X-Forwarded-Client-Cert"):
            for claim in claimed(admin):
                connection = HTTPSConnection(service.target, context=context, timeout=10)
                connection.putrequest("POST", "/carousel.v1.Models/Load")
                body = b'{"model": "none", "version": 1}'
                for header in (("content-type", "application/json"), (name, claim), (name, claim)):
                    connection.putheader(*header)
                connection.putheader("content-length", str(len(body)))
                connection.endheaders(body)
                assert b"principal 'bob' is not one" in connection.getresponse().read()
                connection.close()


def test_a_certificate_of_any_size_does_not_count_as_client_metadata(guarded: Guarded) -> None:
    many = [f"host-{number}.example.com" for number in range(100)]
    with guarded.channel(guarded.authority.issue(dns=[*many, "bob.example.com"])) as channel:
        assert who(channel) == no_admin("bob")


def test_names_are_read_again_while_the_server_runs(tiny_repository: Path, tmp_path: Path) -> None:
    authority = Authority()
    flags = write_files(authority, tmp_path)
    with local_service(tiny_repository, flags) as service:
        guarded = Guarded(service, authority, tmp_path / "tokens-file")
        with guarded.channel(authority.issue(dns=["bob.example.com"])) as channel:
            assert who(channel) == no_admin("bob")
            guarded.tokens.write_text(PRINCIPALS.replace("principals.bob", "principals.robert"))
            wait_until(lambda: who(channel) == no_admin("robert"))
            guarded.tokens.write_text(PRINCIPALS.replace("bob.example.com", "*.example.com"))
            wait_until(lambda: "tokens.not_reloaded" in [line["event"] for line in service.log if who(channel)])
            assert who(channel) == no_admin("robert"), "what it said before holds"
            guarded.tokens.write_text(PRINCIPALS.replace("bob.example.com", "robert.example.com"))
            wait_until(lambda: who(channel).startswith(REFUSED))


def test_certificates_of_a_replaced_authority_are_refused(tiny_repository: Path, tmp_path: Path) -> None:
    """Clients with its certificates are refused, also when they resume a TLS session."""
    old, new = Authority(), Authority()
    own = old.issue(dns=["bob.example.com"])
    (tmp_path / "own").write_bytes(own.certificate + own.key)
    context = ssl.create_default_context(cadata=(old.certificate + new.certificate).decode())
    context.load_cert_chain(tmp_path / "own")
    context.set_alpn_protocols(["h2"])
    with local_service(tiny_repository, write_files(old, tmp_path)) as service:
        first, session, _ = greet(context, service, None)
        assert first
        assert greet(context, service, session)[2], "it is resumed while the authority is there"
        write_files(new, tmp_path)
        credentials = new.credentials(new.issue(dns=["bob.example.com"]))

        def is_replaced() -> bool:
            with grpc.secure_channel(service.target, credentials) as channel:
                return who(channel) == no_admin("bob")

        wait_until(is_replaced)
        with (
            Client(service.target, credentials=old.credentials(own), timeout=3.0) as client,
            pytest.raises(UnavailableError),
        ):
            client.models()
        assert greet(context, service, session)[0] == b""


def greet(
    context: ssl.SSLContext, service: LocalService, session: ssl.SSLSession | None
) -> tuple[bytes, ssl.SSLSession | None, bool | None]:
    """Opens an HTTP/2 connection, and resumes the TLS session if there is one.

    Returns the first bytes that the server sends (none if it refuses), the TLS session, and whether it was resumed.
    """
    host, _, port = service.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                return secure.recv(1000), secure.session, secure.session_reused
        except (ssl.SSLError, ConnectionError):
            return b"", None, None


@pytest.mark.parametrize("command", [(), ("--check",)])
def test_certificate_names_without_a_client_authority_stop_the_start(
    tiny_repository: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    flags = write_files(Authority(), tmp_path)
    arguments = [f"--{name}={flags[name]}" for name in ("tokens-file", "tls-cert-file", "tls-key-file")]
    done = run("service", f"--models={tiny_repository}", "--port=0", *arguments, *command)
    assert done.returncode == 1
    assert (
        "principals.admin.certificate_names: this server does not request client certificates"
        in (done.stdout + done.stderr).decode()
    )

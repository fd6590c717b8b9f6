"""A client that cannot connect says why and what to try, in its user's terms, with both wires of the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from typing import NamedTuple

import grpc
import pytest

from carousel import AsyncClient, Client, UnavailableError
from tests.certificates import Authority, Issued
from tests.cli.shell import Shell
from tests.services import local_service

AUTHORITY, OTHER, EXPIRED = Authority(), Authority(), Authority(timedelta(days=-3))


class Case(NamedTuple):
    """A client that cannot connect, and the expected error.

    server: a key of `servers`.
    ca, own: the client's authority and certificate; None if it has none.
    happened: what the error says about the cause.
    python, shell: what the error advises, in the library and in the command.
    """

    server: str
    ca: Authority | None
    own: Issued | None
    happened: str
    python: str
    shell: str


NO_TLS = "the server does not use TLS at this port"
CLOSED = "the server closed the new connection"
CASES = {
    "TLS to a port without": Case(
        "plain", AUTHORITY, None, NO_TLS, "leave `credentials` out", "leave out --tls, --ca, --cert and --key"
    ),
    "plain text to a port with TLS": Case(
        "tls", None, None, CLOSED, "if it requires TLS, pass `credentials`", "give --tls, or --ca with the PEM file"
    ),
    "another authority": Case(
        "tls",
        OTHER,
        None,
        "the client does not trust the authority of the server's certificate",
        "pass its PEM: credentials=grpc.ssl_channel_credentials(ca)",
        "give the PEM file of the authority (--ca)",
    ),
    "another name": Case(
        "named",
        AUTHORITY,
        None,
        "the server's certificate has another name than the target",
        "connect to a name in the certificate",
        "give a name in the certificate (-t HOST:PORT)",
    ),
    "an expired certificate": Case(
        "expired",
        EXPIRED,
        None,
        "the server's certificate has expired or is not valid yet",
        "replace it, or correct this machine's clock",
        "replace it, or correct this machine's clock",
    ),
    "no client certificate": Case("mutual", AUTHORITY, None, "", "client certificate", "give one (--cert, --key)"),
    "another authority of the client's certificate": Case(
        "mutual",
        AUTHORITY,
        OTHER.issue(common=["me"]),
        "",
        "client certificate",
        "give a certificate from an authority that the server trusts (--cert, --key)",
    ),
}


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yields the targets of servers with one wire, by what they require."""
    folder = tmp_path_factory.mktemp("servers")
    (folder / "models").mkdir()
    (folder / "ca").write_bytes(AUTHORITY.certificate)

    def flags(name: str, issued: Issued) -> dict[str, object]:
        (folder / f"{name}.pem").write_bytes(issued.certificate)
        (folder / f"{name}.key").write_bytes(issued.key)
        return {"tls-cert-file": folder / f"{name}.pem", "tls-key-file": folder / f"{name}.key"}

    wanted = {
        "plain": {},
        "tls": flags("tls", AUTHORITY.issue_server()),
        "named": flags("named", AUTHORITY.issue(dns=["elsewhere.example"])),
        "expired": flags("expired", EXPIRED.issue_server()),
        "mutual": {**flags("mutual", AUTHORITY.issue_server()), "tls-client-ca-file": folder / "ca"},
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(local_service(folder / "models", {"wire": request.param, **given})).target
            for name, given in wanted.items()
        }


def blocking(target: str, credentials: grpc.ChannelCredentials | None) -> None:
    with Client(target, credentials=credentials, timeout=10) as client:
        client.models()


def generating(target: str, credentials: grpc.ChannelCredentials | None) -> None:
    """Makes a call that is retried when its connection is lost. In these tests it never has a connection."""
    with Client(target, credentials=credentials, timeout=10) as client:
        list(client.generate("any"))


def opening(target: str, credentials: grpc.ChannelCredentials | None) -> None:
    with Client(target, credentials=credentials, timeout=10) as client:
        client.session("any")


def asynchronous(target: str, credentials: grpc.ChannelCredentials | None) -> None:
    async def ask() -> None:
        async with AsyncClient(target, credentials=credentials, timeout=10) as client:
            await client.models()

    asyncio.run(ask())


@pytest.mark.parametrize("call", [blocking, generating, opening, asynchronous])
@pytest.mark.parametrize("name", CASES)
def test_the_library_says_what_to_pass(
    servers: dict[str, str], name: str, call: Callable[[str, grpc.ChannelCredentials | None], None]
) -> None:
    case = CASES[name]
    credentials = None if case.ca is None else case.ca.credentials(case.own)
    with pytest.raises(UnavailableError) as raised:
        call(servers[case.server], credentials)
    found, _, details = raised.value.message.partition(" (failed to connect")
    assert found.startswith(case.happened)
    assert case.python in found
    assert details, "gRPC's own words are there, too"
    assert raised.value.reason == ""


@pytest.mark.parametrize("name", CASES)
def test_the_command_says_which_options_to_give(servers: dict[str, str], name: str, tmp_path: Path) -> None:
    case = CASES[name]
    files = {} if case.ca is None else {"ca": case.ca.certificate}
    if case.own is not None:
        files |= {"cert": case.own.certificate, "key": case.own.key}
    options: list[str] = []
    for option, content in files.items():
        (tmp_path / option).write_bytes(content)
        options += [f"--{option}", str(tmp_path / option)]
    done = Shell(servers[case.server]).run(*options, "models", code=3)
    output = done.stderr.decode().splitlines()[-1]  # gRPC may have logged lines before
    assert output.startswith(f"error: cannot connect to {servers[case.server]}: {case.happened}")
    assert case.shell in output


@contextmanager
def running(server: TCPServer) -> Iterator[str]:
    """Runs a server in a thread. Yields its target."""
    with server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def http_1() -> Iterator[str]:
    """Yields the target of a server that answers plain text in HTTP/1, as servers of HTTPS do."""
    with running(HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)) as target:
        yield target


def test_a_server_that_answers_in_http_1_gets_another_error_than_a_missing_server(http_1: str) -> None:
    for call in (blocking, asynchronous):
        with pytest.raises(UnavailableError, match=r"does not answer in HTTP/2 at this port: .* pass `credentials`"):
            call(http_1, None)
    output = Shell(http_1).run("models", code=3).stderr.decode()
    assert "the server does not answer in HTTP/2 at this port: give a port of a Carousel server" in output


@pytest.mark.parametrize("target", ["127.0.0.1:1", "nowhere.invalid:50051"])
def test_the_error_for_a_missing_server_does_not_mention_tls(target: str) -> None:
    for call in (blocking, asynchronous):
        with pytest.raises(UnavailableError) as raised:
            call(target, None)
        assert "TLS" not in raised.value.message
        assert "credentials" not in raised.value.message
    assert b"TLS" not in Shell(target).run("models", code=3).stderr


class Closing(BaseRequestHandler):
    """Closes each connection at once."""

    def handle(self) -> None:
        self.request.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[str]:
    """Yields the target of a proxy whose server starts."""
    with running(TCPServer(("127.0.0.1", 0), Closing)) as target:
        yield target


def test_a_proxy_that_closes_each_connection_is_named_as_a_cause(proxy: str) -> None:
    words = "; a proxy also does this while the server behind it starts"
    with pytest.raises(UnavailableError, match=f"^{CLOSED}: .*{words}"):
        blocking(proxy, None)
    assert words in Shell(proxy).run("models", code=3).stderr.decode()

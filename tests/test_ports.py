"""The server finds out why it cannot use a port before gRPC tries to listen on it."""

from __future__ import annotations

import socket
import sys

import pytest

from service.ports import Reservation, why_not


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_with_a_listener_is_in_use(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if host != "localhost":  # localhost may resolve to another address, on which the port is free
            assert why_not(host, port, is_in_use=True) == "address already in use"
            assert why_not(host, port, is_in_use=False) is None
    assert why_not(host, port, is_in_use=True) is why_not(host, port, is_in_use=False) is None
    assert why_not(host, 0, is_in_use=True) is why_not(host, 0, is_in_use=False) is None


def test_a_port_whose_connections_were_just_closed_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert why_not("127.0.0.1", port, is_in_use=True) is None


def test_a_reserved_port_refuses_connections_until_it_is_released() -> None:
    kept = Reservation("127.0.0.1", 0)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", kept.port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", kept.port))
    assert kept.release() == kept.release() == kept.port
    with socket.socket() as other:
        other.bind(("127.0.0.1", kept.port))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let nobody listen at it meanwhile")
def test_a_server_can_listen_on_a_reserved_port() -> None:
    kept = Reservation("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", kept.port)), socket.create_connection(("127.0.0.1", kept.port)):
        kept.release()


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "cannot assign requested address"), ("no.such.host.invalid", "")],
)
def test_an_address_of_another_machine_is_reported(host: str, reason: str) -> None:
    assert why_not(host, 0, is_in_use=True) is None
    found = why_not(host, 0, is_in_use=False)
    assert found
    assert reason in found


def test_an_address_of_ipv6_may_have_brackets() -> None:
    assert why_not("[::1]", 0, is_in_use=False) == why_not("::1", 0, is_in_use=False)


def test_of_several_addresses_one_in_use_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may be addresses that this machine does not have: a second server is told what it can change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in ("192.0.2.1", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert why_not("name", port, is_in_use=True) == "address already in use"
        assert why_not("name", port, is_in_use=False) is None

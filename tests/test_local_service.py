"""`local_service` detects the start of a service also when its log does not report the start."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import grpc
import pytest

from carousel import Client
from examples.local_service import local_service as service_process
from tests.certificates import Authority
from tests.services import local_service


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_start_without_a_log_line_is_detected(tiny_repository: Path, level: str) -> None:
    with service_process(tiny_repository, {"log-level": level}) as service:
        assert not [line for line in service.log if line["event"] == "server.started"]
        with Client(service.target) as client:
            assert client.models()
        with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
            assert b"carousel_build_info" in answer.read()


def test_a_start_with_tls_is_detected(tiny_repository: Path, tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.issue_server()
    (tmp_path / "cert").write_bytes(issued.certificate)
    (tmp_path / "key").write_bytes(issued.key)
    flags = {"log-level": "warning", "tls-cert-file": tmp_path / "cert", "tls-key-file": tmp_path / "key"}
    trusted = grpc.ssl_channel_credentials(authority.certificate)
    with local_service(tiny_repository, flags) as service, Client(service.target, credentials=trusted) as client:
        assert client.models()


def test_a_start_without_models_is_detected(tmp_path: Path) -> None:
    with local_service(tmp_path, {"log-level": "warning"}) as service, Client(service.target) as client:
        assert client.models() == ()


def test_a_failed_start_raises_with_the_log(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with code 1:\n.*none"),
        local_service(tmp_path / "none", {"log-level": "warning"}),
    ):
        pass

"""A metric shows when the server's certificates expire, with both wires."""

from __future__ import annotations

import re
import signal
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from examples.local_service import LocalService
from tests.certificates import Authority
from tests.services import local_service
from tests.waiting import wait_until

DAY = timedelta(days=1)


def ends(service: LocalService) -> dict[str, float]:
    """Returns the metric's value for each file."""
    with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^carousel_tls_certificate_expiry_timestamp_seconds\{file="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {file: float(value) for file, value in found}


def end_of(pem: bytes) -> float:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


@pytest.mark.parametrize("wire", ["grpcio", "envoy"])
def test_the_metric_has_the_expiry_of_each_file_and_is_updated(tmp_path: Path, wire: str) -> None:
    cert, key, clients = tmp_path / "cert", tmp_path / "key", tmp_path / "clients"
    models = tmp_path / "models"
    models.mkdir()

    def write(authority: Authority) -> bytes:
        issued = authority.issue_server()
        cert.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return issued.certificate

    authority = Authority(300 * DAY)
    clients.write_bytes(authority.certificate)
    first = write(Authority(5 * DAY))
    flags = {"wire": wire, "tls-cert-file": cert, "tls-key-file": key, "tls-client-ca-file": clients}
    with local_service(models, flags) as service:
        assert ends(service) == {
            "tls_cert_file": end_of(first),
            "tls_client_ca_file": end_of(authority.certificate),
        }
        second = write(Authority(50 * DAY))
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ends(service)["tls_cert_file"] == end_of(second))


def test_without_tls_the_metric_has_no_series(tiny_service: LocalService) -> None:
    assert ends(tiny_service) == {}

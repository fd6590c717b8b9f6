"""The server warns, with the date, of a certificate that clients refuse or will soon refuse because of its dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from service.certificate_dates import validity_of, warning_of
from service.certificates import warn_of_dates
from service.check import check
from service.settings import Settings
from tests.certificates import Authority

DAY = timedelta(days=1)


@pytest.mark.parametrize("expires_in", [timedelta(days=100), timedelta(days=-100), timedelta(days=36_500)])
def test_dates_are_those_of_the_certificate(expires_in: timedelta) -> None:
    """Dates after 2049, whose years have four digits in a certificate, are read too."""
    pem = Authority(expires_in).issue_server().certificate
    expected = x509.load_pem_x509_certificate(pem)
    assert validity_of(pem) == (expected.not_valid_before_utc, expected.not_valid_after_utc)


def test_the_earliest_end_of_several_certificates_counts() -> None:
    authority = Authority(5 * DAY)
    both = Authority(50 * DAY).issue_server().certificate + authority.certificate
    assert validity_of(both) == validity_of(authority.certificate)


@pytest.mark.parametrize(
    ("now_in", "event"),
    [
        (-3 * DAY, "tls.certificate_not_yet_valid"),
        (DAY, None),
        (85 * DAY, None),
        (87 * DAY, "tls.certificate_expires_soon"),
        (101 * DAY, "tls.certificate_expired"),
    ],
)
def test_expired_and_soon_expiring_certificates_give_a_warning(now_in: timedelta, event: str | None) -> None:
    warned = warning_of(Authority(100 * DAY).issue_server().certificate, datetime.now(UTC) + now_in)
    assert (None if warned is None else warned.event) == event


@pytest.mark.parametrize("pem", [b"", b"nonsense", Authority().certificate.replace(b"MII", b"MIA", 1)])
def test_unreadable_certificates_give_no_warning(pem: bytes) -> None:
    assert warning_of(pem, datetime.now(UTC)) is None


def test_a_server_with_an_expired_certificate_warns_of_it_with_the_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issued = Authority(-2 * DAY).issue_server()
    (tmp_path / "cert").write_bytes(issued.certificate)
    (tmp_path / "key").write_bytes(issued.key)
    settings = Settings(
        models=tmp_path,
        data_folder=tmp_path / "data",
        port=0,
        metrics_port=0,
        tls_cert_file=tmp_path / "cert",
        tls_key_file=tmp_path / "key",
    )
    date = f"{datetime.now(UTC) - 2 * DAY:%Y-%m-%d}"
    with capture_logs() as logs:
        warn_of_dates(settings)
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("tls.certificate_expired", "warning")
    assert line["at"].startswith(date)
    check(settings)
    assert f"WARNING {tmp_path / 'cert'}: tls.certificate_expired: {date}" in capsys.readouterr().out

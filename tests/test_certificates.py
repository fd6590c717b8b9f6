"""The server replaces its certificate while it runs, and only with one that works."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from service.certificates import CLIENT_CA, SERVER, CertificateError, Certificates
from tests.certificates import Authority


class Files:
    """A certificate, its key and its authority, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.authority = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.heard: list[CertificateError | None] = []
        self.issuer = trustme.CA()
        self.issuer.cert_pem.write_to_path(self.authority)
        self.write_cert(self.write_key())

    def write_key(self) -> trustme.LeafCert:
        """Replaces the key and keeps the certificate. Returns a certificate for the new key."""
        issued = self.issuer.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self.key)
        return issued

    def write_cert(self, issued: trustme.LeafCert) -> None:
        """Replaces the certificate and keeps the key."""
        issued.cert_chain_pems[0].write_to_path(self.cert)

    def certificates(self) -> Certificates:
        """Returns the `Certificates` of a server that uses these files. It reports to `heard`."""
        return Certificates(self.cert, self.key, self.authority, self.heard.append)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_reload_reads_the_files_at_once(files: Files) -> None:
    certificates = files.certificates()
    assert certificates.changed() is None, "nothing has changed"
    files.write_cert(files.write_key())
    assert certificates.reload()
    assert certificates.changed() is not None, "who asks next gets it"
    assert certificates.changed() is None
    assert files.heard == [None], "it is reported once"


def cut(path: Path) -> None:
    """Cuts a file to its first half."""
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: files.cert.unlink(), "cert.pem cannot be read: No such file"),
        (lambda files: files.cert.write_text("hello"), "cert.pem is not PEM"),
        (lambda files: files.key.write_text(files.cert.read_text()), "key.pem has no private key"),
        (lambda files: cut(files.cert), "are not a certificate and its private key"),
        (lambda files: cut(files.key), "are not a certificate and its private key"),
        (lambda files: files.write_key(), "are not a certificate and its private key: KEY_VALUES_MISMATCH"),
        (lambda files: cut(files.authority), "ca.pem has no certificate of a certificate authority"),
    ],
)
def test_invalid_files_are_reported_and_the_old_certificate_stays(
    files: Files, spoil: Callable[[Files], object], message: str
) -> None:
    certificates = files.certificates()
    spoil(files)
    assert not certificates.reload()
    for _ in range(3):
        assert certificates.changed() is None
    assert message in str(files.heard[0])
    assert len(files.heard) == 1, "it is not repeated"
    with pytest.raises(CertificateError):
        files.certificates()


def test_a_new_certificate_is_used_once_its_key_is_there(files: Files) -> None:
    certificates = files.certificates()
    issued = files.issuer.issue_cert("localhost")
    files.write_cert(issued)
    assert certificates.changed() is None
    issued.private_key_pem.write_to_path(files.key)
    assert certificates.changed() is not None
    assert [error is None for error in files.heard] == [False, True]


def test_the_reported_end_is_that_of_the_certificates_in_use(files: Files) -> None:
    certificates = files.certificates()
    assert certificates.end_of(SERVER) == end_of(files.cert)
    assert certificates.end_of(CLIENT_CA) == end_of(files.authority)
    before = end_of(files.cert)
    issued = Authority(timedelta(days=9)).issue_server()
    files.cert.write_bytes(issued.certificate)
    assert certificates.end_of(SERVER) == before, "the certificate is not used without its key"
    files.key.write_bytes(issued.key)
    assert certificates.end_of(SERVER) == end_of(files.cert) != before, "changed files are read"
    assert certificates.changed() is not None, "the wire gets them all the same"
    assert [error is None for error in files.heard] == [False, True]


def test_without_a_client_ca_there_is_no_end(files: Files) -> None:
    assert Certificates(files.cert, files.key, None, files.heard.append).end_of(CLIENT_CA) is None


def end_of(path: Path) -> float:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()

"""Which names of a certificate can identify a principal. A name of one kind cannot imitate a name of another kind."""

from __future__ import annotations

import ipaddress
import ssl

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from service.api.certificate_names import CertificateFormatError, check_name, names_in, names_of
from tests.certificates import Authority

AUTHORITY = Authority()
TEXT = st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=40)
NAMES = TEXT | st.sampled_from(["spiffe://corp/app", "app.example.com", "CN=app", "urn:x", "x;URI=spiffe://corp/admin"])
COMMON = st.text(min_size=1, max_size=30).filter(lambda name: len(name.encode("utf-8", "ignore")) <= 60) | NAMES


def is_name(text: str) -> bool:
    """Returns whether the file of principals may contain this name."""
    try:
        return check_name(text) == text
    except ValueError:
        return False


def test_names_come_in_order_uris_first_the_common_name_last() -> None:
    issued = AUTHORITY.issue(
        dns=["b.example.com", "a.example.com"], uris=["spiffe://corp/b", "urn:uuid:1"], common=['Émile, the "app"']
    )
    assert names_in(issued.certificate) == (
        "spiffe://corp/b",
        "urn:uuid:1",
        "b.example.com",
        "a.example.com",
        'CN=Émile, the "app"',
    )


def test_a_certificate_may_have_none() -> None:
    address = x509.IPAddress(ipaddress.ip_address("10.0.0.1"))
    issued = AUTHORITY.issue(x509.RFC822Name("app@example.com"), address)
    assert names_in(issued.certificate) == ()
    assert names_in(AUTHORITY.issue().certificate) == ()
    assert names_of({}) == names_of({"x509_common_name": [b"app"]}) == ()


def test_a_certificate_with_several_common_names_has_no_name() -> None:
    """Libraries differ in which common name they use."""
    assert names_in(AUTHORITY.issue(common=["app", "admin"]).certificate) == ()


@pytest.mark.parametrize(
    ("uris", "dns", "common"),
    [
        ([], ["app.example.com\0.evil.example"], ["app\0evil"]),
        ([], ["spiffe://corp/app", "CN=app", "*.example.com", "x;URI=spiffe://corp/app", "app.example.com\n"], []),
        (["app.example.com", "CN=app", "//corp/app", "spiffe://corp/app\n", "spiffe://corp/a b"], [], []),
        ([], [], ["app\r\nx: y"]),
    ],
)
def test_a_name_cannot_imitate_a_name_of_another_kind(uris: list[str], dns: list[str], common: list[str]) -> None:
    assert names_in(AUTHORITY.issue(uris=uris, dns=dns, common=common).certificate) == ()


@given(st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=4), st.lists(COMMON, max_size=2))
def test_whatever_is_in_a_certificate_each_name_is_one_of_its_kind(
    uris: list[str], dns: list[str], common: list[str]
) -> None:
    try:
        issued = AUTHORITY.issue(uris=uris, dns=dns, common=common)
    except ValueError:  # no certificate can have these names
        return
    expected = [name for name in uris if is_name(name) and ":" in name and not name.startswith("CN=")]
    expected += [name for name in dns if is_name(name) and ":" not in name and not name.startswith("CN=")]
    expected += [f"CN={name}" for name in common if len(common) == 1 and is_name(f"CN={name}")]
    assert list(names_of({"x509_pem_cert": [issued.certificate]})) == expected


@given(st.data())
def test_an_invalid_certificate_is_refused(data: st.DataObject) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(AUTHORITY.certificate.decode()))
    if data.draw(st.booleans()):
        del der[data.draw(st.integers(0, len(der) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if der:
            der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        names = names_in(ssl.DER_cert_to_PEM_cert(bytes(der)).encode())
    except CertificateFormatError:
        return
    assert all(map(is_name, names))


@pytest.mark.parametrize("pem", [b"", b"x", b"\xff", b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_is_not_pem_is_refused(pem: bytes) -> None:
    with pytest.raises(CertificateFormatError):
        names_in(pem)


@pytest.mark.parametrize("name", ["spiffe://corp/app", "urn:uuid:1", "app", "app.example.com", "CN=x, y", "CN=CN=é"])
def test_the_file_may_have_names_that_certificates_have(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "CN=", "O=x,CN=app", "*.example.com", ".app", "a b", "spiffe://a b", "CN=a\0b", "é"]
)
def test_a_name_that_no_certificate_has_is_refused_with_what_is_expected(name: str) -> None:
    with pytest.raises(
        ValueError, match="is not a valid name of a certificate: expected a URI such as spiffe://corp/app"
    ):
        check_name(name)

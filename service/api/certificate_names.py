"""Reads the names in a client's certificate. The file of principals writes them in this form:

    spiffe://corp/app   a subject alternative name that is a URI
    app.example.com     a subject alternative name that is a DNS name
    CN=app              the common name of the subject, if it has exactly one

On both wires the names are read from the certificate itself, because the names that the wires report cannot be trusted:
gRPC for Python cuts them at a NUL, and Envoy does not escape them, so that `x;URI=spiffe://corp/admin` reads as two
names. The wire has verified the certificate before. Pure.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from service.der import elements, fields_of
from service.errors import quoted

AuthContext = Callable[[], Mapping[str, Iterable[bytes]]]
"""Returns what a wire knows of a call's client: `x509_pem_cert` has the client's certificate, if it was verified."""

# No text matches two of these forms, so that a name of one kind is never taken for another kind.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_DNS = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_COMMON = "CN="

# Tags and object identifiers of X.509 in DER: RFC 5280, 4.1 and appendix A.
_SEQUENCE, _SET = 0x30, 0x31
_EXTENSIONS = 0xA3
_DNS_NAME, _URI_NAME = 0x82, 0x86
_COMMON_NAME, _ALTERNATIVE_NAMES = bytes((0x55, 4, 3)), bytes((0x55, 29, 17))
_ENCODINGS = {0x0C: "utf-8", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
"""Encodings of strings, by tag. Strings with other tags have one byte for each character."""


class CertificateFormatError(ValueError):
    """A certificate does not have the format of RFC 5280. A certificate that a wire has verified always has it."""


def check_name(text: str) -> str:
    """Returns the name, if a certificate can have it. Raises ValueError."""
    if _URI.fullmatch(text) or _DNS.fullmatch(text) or (text.startswith(_COMMON) and _is_common(text[len(_COMMON) :])):
        return text
    raise ValueError(
        f"{quoted(text)} is not a valid name of a certificate: expected a URI such as spiffe://corp/app, a DNS name"
        " without wildcards, or CN= and a common name"
    )


def names_of(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Returns the names of the client's certificate: URIs, DNS names, the common name. URIs and DNS names are in the
    certificate's order. Names that `check_name` refuses are left out. Empty without a certificate. Raises
    CertificateFormatError."""
    return next((names_in(pem) for pem in auth_context.get("x509_pem_cert", ())), ())


@lru_cache(maxsize=256)
def names_in(pem: bytes) -> tuple[str, ...]:
    """Returns the names of a certificate in PEM. Raises CertificateFormatError."""
    try:
        subject, extensions = _parts(ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
        commons, alternatives = _common_names(subject), _alternative_names(extensions)
    except (ValueError, IndexError) as error:
        raise CertificateFormatError(f"the certificate cannot be read: {error}") from error
    uris = [name for tag, name in alternatives if tag == _URI_NAME and _URI.fullmatch(name)]
    dns = [name for tag, name in alternatives if tag == _DNS_NAME and _DNS.fullmatch(name)]
    common = [f"{_COMMON}{name}" for name in commons if len(commons) == 1 and _is_common(name)]
    return (*uris, *dns, *common)


def _is_common(name: str) -> bool:
    return name != "" and name.isprintable()


def _parts(certificate: bytes) -> tuple[bytes, bytes | None]:
    """Returns the contents of the subject, and those of the extensions; None without extensions."""
    _serial, _algorithm, _issuer, _validity, subject, *others = fields_of(certificate)
    extensions = next((content for tag, content in others if tag == _EXTENSIONS), None)
    return subject[1], extensions


def _common_names(subject: bytes) -> list[str]:
    found = []
    for attributes in _contents(subject, _SET):
        for attribute in _contents(attributes, _SEQUENCE):
            (_, kind), (tag, value) = elements(attribute)
            if kind == _COMMON_NAME:
                found.append(value.decode(_ENCODINGS.get(tag, "latin-1")))
    return found


def _alternative_names(extensions: bytes | None) -> list[tuple[int, str]]:
    """Returns the tag and the text of each subject alternative name."""
    if extensions is None:
        return []
    (listed,) = _contents(extensions, _SEQUENCE)
    for extension in _contents(listed, _SEQUENCE):
        (_, kind), *_critical, (_, value) = elements(extension)
        if kind == _ALTERNATIVE_NAMES:
            (names,) = _contents(value, _SEQUENCE)
            return [(tag, name.decode("latin-1")) for tag, name in elements(names)]
    return []


def _contents(data: bytes, expected: int) -> list[bytes]:
    """Returns the contents of elements that must all have the tag `expected`. Raises ValueError for another tag."""
    found = elements(data)
    if any(tag != expected for tag, _ in found):
        raise ValueError(f"unexpected DER tag: expected {expected:#x}")
    return [content for _, content in found]

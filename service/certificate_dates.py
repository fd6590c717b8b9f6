"""The dates between which certificates are valid, and the warnings about them. Pure."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from service.der import elements, fields_of

SOON = timedelta(days=14)
"""How long before a certificate's end the warnings begin."""
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SHORT_YEAR = 0x17
"""The tag of UTCTime, whose year has two digits (RFC 5280, 4.1.2.5.1)."""


class Validity(NamedTuple):
    """When a certificate is valid, including both times."""

    begins: datetime
    ends: datetime


class Warned(NamedTuple):
    """A warning. event: name of the log line; at: the date that the warning is about, in UTC."""

    event: str
    at: str


def validity_of(pems: bytes) -> Validity | None:
    """Returns the period in which all certificates of a PEM file are valid; None when one of them cannot be parsed or
    there is none."""
    try:
        found = [_validity(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))) for pem in _PEM.findall(pems)]
    except (ValueError, IndexError):
        return None
    return Validity(max(one.begins for one in found), min(one.ends for one in found)) if found else None


def warning_of(pems: bytes, now: datetime) -> Warned | None:
    """Returns a warning if a certificate is expired, expires soon or is not valid yet; None otherwise."""
    validity = validity_of(pems)
    if validity is None:
        return None
    if validity.ends <= now:
        return Warned("tls.certificate_expired", _text(validity.ends))
    if now < validity.begins:
        return Warned("tls.certificate_not_yet_valid", _text(validity.begins))
    if validity.ends - now < SOON:
        return Warned("tls.certificate_expires_soon", _text(validity.ends))
    return None


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _validity(certificate: bytes) -> Validity:
    """Returns when a DER certificate is valid. Raises ValueError and IndexError."""
    _serial, _algorithm, _issuer, (_, validity), *_ = fields_of(certificate)
    begins, ends = elements(validity)
    return Validity(_time(*begins), _time(*ends))


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _SHORT_YEAR:
        text = f"{'19' if text >= '5' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)

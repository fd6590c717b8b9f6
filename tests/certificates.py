"""A certificate authority for tests. It signs any names, also names that no real authority should sign."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)
_YEAR = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs any certificate. expires_in: the time until its certificates expire; negative for expired ones."""

    def __init__(self, expires_in: timedelta = _YEAR) -> None:
        self._expires_in = expires_in
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    @cached_property
    def certificate(self) -> bytes:
        """The authority's own certificate, in PEM."""
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def issue(
        self,
        *others: x509.GeneralName,
        uris: Sequence[str] = (),
        dns: Sequence[str] = (),
        common: Sequence[str] = (),
    ) -> Issued:
        """Returns a certificate with these alternative names and common names."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'A "company", of sorts')]
        attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common]
        builder = self._builder(x509.Name(attributes), key)
        names = [*others, *map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, SHA256())
        return Issued(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def issue_server(self) -> Issued:
        """Returns a certificate for a server on this machine, with names of several kinds."""
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return self.issue(address, dns=["localhost"], uris=['spiffe://corp/server;Cert="x"'])

    def credentials(self, own: Issued | None = None) -> grpc.ChannelCredentials:
        """Returns the channel credentials of a client that trusts this authority. own: the client's certificate, if
        any."""
        return grpc.ssl_channel_credentials(
            self.certificate, own.key if own else None, own.certificate if own else None
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - 2 * _YEAR if self._expires_in < -_DAY else now - _DAY,
            not_valid_after=now + self._expires_in,
        )

"""The TLS files: the server's certificate and key, and the certificate authorities for client certificates.

They are checked when they are read, and read again when they change.
"""

from __future__ import annotations

import math
import os
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import structlog

from service.certificate_dates import Warned, validity_of, warning_of
from service.process import StartError
from service.settings import Settings

log = structlog.get_logger()

SERVER = "tls_cert_file"
"""The setting that names the file of the server's certificate."""
CLIENT_CA = "tls_client_ca_file"
"""The setting that names the file of the authorities that clients' certificates must be signed by."""
_KEY = "tls_key_file"


class CertificateError(Exception):
    """A certificate or a key cannot be read. The message says which."""


class Pems(NamedTuple):
    """The contents of the files, in PEM. authorities: must sign clients' certificates; None if clients need none."""

    certificate: bytes
    key: bytes
    authorities: bytes | None


class Certificates:
    """Reads the TLS files and notices changes. Raises CertificateError at the start.

    on_change(error): called by any thread when the files have changed. None: the new files are valid and in use. An
    error: they cannot be used, and the earlier ones stay in use.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None, on_change: Callable[[CertificateError | None], None]
    ) -> None:
        settings = {SERVER: cert, _KEY: key, CLIENT_CA: client_ca}
        self._files = {name: path for name, path in settings.items() if path is not None}
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stamps = self._look()
        self.first = self._latest = self._read()
        """The contents at the start."""
        self._problem = ""
        self._next: Pems | None = None

    def end_of(self, setting: str) -> float | None:
        """Returns when the first certificate of a file ends, in seconds since the epoch; NaN when it cannot be parsed.

        setting: SERVER or CLIENT_CA; the result is None if that setting names no file. Reads changed files first.
        Called by any thread; blocks while files are read.
        """
        self._read_changes()
        with self._lock:
            pems = self._latest.certificate if setting == SERVER else self._latest.authorities
        if pems is None:
            return None
        validity = validity_of(pems)
        return math.nan if validity is None else validity.ends.timestamp()

    def reload(self) -> bool:
        """Reads the files now, changed or not. Returns whether they are valid, and calls `on_change` in both cases.
        Called by any thread; blocks while the files are read."""
        with self._lock:
            try:
                self._stamps, self._next = self._look(), self._read()
            except CertificateError as error:
                self._problem = ""
                self._report(error)
                return False
            self._latest = self._next
            self._problem = ""
        self._on_change(None)
        return True

    def changed(self) -> Pems | None:
        """Returns the files' contents if they have changed since the last call and are valid, else None. Called by any
        thread; blocks while the files are read."""
        self._read_changes()
        with self._lock:
            pems, self._next = self._next, None
        return pems

    def _read_changes(self) -> None:
        """Reads the files if they have changed, and keeps their contents for the next call of `changed`."""
        with self._lock:
            try:
                stamps = self._look()
                if stamps == self._stamps:
                    self._problem = ""
                    return
                self._stamps = stamps
                self._latest = self._next = self._read()
            except CertificateError as error:
                self._report(error)
                return
            self._problem = ""
        self._on_change(None)

    def _report(self, error: CertificateError) -> None:
        """Calls `on_change` once for each problem, because `changed` is called often."""
        if str(error) != self._problem:
            self._problem = str(error)
            self._on_change(error)

    def _look(self) -> list[tuple[int, int]]:
        return [(status.st_mtime_ns, status.st_ino) for status in starmap(_stat, self._files.items())]

    def _read(self) -> Pems:
        certificate, key, *authorities = starmap(_pem, self._files.items())
        if b"PRIVATE KEY" not in key:
            raise CertificateError(f"{_KEY} = {self._files[_KEY]} has no private key")
        self._check()
        return Pems(certificate, key, authorities[0] if authorities else None)

    def _check(self) -> None:
        """Raises CertificateError for files that gRPC and Envoy accept and that then fail every handshake: damaged
        files, and a certificate of another key, which is there while the two files are replaced one after the other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert, key = self._files[SERVER], self._files[_KEY]
        try:
            context.load_cert_chain(cert, key, password="")  # or it asks the terminal for that of an encrypted key
        except OSError as error:  # which an SSLError is
            raise CertificateError(
                f"{SERVER} = {cert} and {_KEY} = {key} are not a certificate and its private key: {_reason(error)}"
            ) from None
        authorities = self._files.get(CLIENT_CA)
        if authorities is not None:
            try:
                context.load_verify_locations(authorities)
            except OSError as error:
                raise CertificateError(
                    f"{CLIENT_CA} = {authorities} has no certificate of a certificate authority: {_reason(error)}"
                ) from None


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or type(error).__name__


def _stat(setting: str, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise CertificateError(f"{setting} = {path} cannot be read: {error.strerror}") from None


def _pem(setting: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{setting} = {path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise CertificateError(f"{setting} = {path} is not PEM")
    return data


def certificates_of(settings: Settings) -> Certificates | None:
    """Returns the certificate, key and authorities that the settings name; None without TLS. Raises StartError."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    files = (settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    def on_change(error: CertificateError | None) -> None:
        if error is None:
            log.info("tls.reloaded")
            warn_of_dates(settings)
        else:
            log.error("tls.not_reloaded", reason=str(error))

    try:
        return Certificates(*files, on_change)
    except CertificateError as error:
        raise StartError(str(error)) from error


def dates_to_warn_of(settings: Settings) -> Warned | None:
    """Returns the warning about the dates of the server's certificate and its chain; None when there is none."""
    try:
        pems = b"" if settings.tls_cert_file is None else settings.tls_cert_file.read_bytes()
    except OSError:  # reported by the code that reads the certificates for use
        return None
    return warning_of(pems, datetime.now(UTC))


def warn_of_dates(settings: Settings) -> None:
    """Logs the result of `dates_to_warn_of`. Clients refuse a certificate that is expired or not valid yet. The server
    continues, because its clock may be wrong, and because open streams do not end when a certificate expires."""
    warned = dates_to_warn_of(settings)
    if warned is not None:
        log.warning(
            warned.event,
            at=warned.at,
            file=str(settings.tls_cert_file),
            hint="replace the file: the server reads it again",
        )

"""Finds the principal of a call, by the hash of its token or by the names of its client's certificate.

The principals are in a TOML file, which is read again when it changes:

    [principals.app]           # token_sha256, certificate_names or both
    token_sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
    certificate_names = ["spiffe://corp/app", "app.example.com", "CN=app"]
    max_sessions = 100         # live at once; default: only the server's limit
    max_requests_per_s = 2000  # messages of streams, and other calls; bursts of one second's requests are allowed
    admin = false              # may see and change sessions of others, and load and unload models

A token has 32 random bytes, so that nobody can find it from its plain hash. `python -m service token` makes one.

A call with a token belongs to the token's principal, whatever certificate its client has. Without a token, the client's
certificate decides: of its names, in the order of `names_of`, the first that a principal has.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from service.api.caller import NOBODY, Caller, Principal
from service.api.certificate_names import AuthContext, check_name, names_of
from service.errors import UnauthenticatedError, quoted
from service.repository.manifest import Sha256
from service.sessions.checks import PRINCIPAL

_LOOK_EVERY_S = 1.0
_SCHEME = "bearer "
CertificateName = Annotated[str, AfterValidator(check_name)]
Name = Annotated[str, StringConstraints(pattern=f"^{PRINCIPAL}$")]


class TokenFileError(Exception):
    """The file cannot be read, or is invalid. The message says what is wrong, and contains no token."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    token_sha256: list[Sha256] = Field(default=[], min_length=1)
    certificate_names: list[CertificateName] = Field(default=[], min_length=1)
    max_sessions: int | None = Field(default=None, ge=0)
    max_requests_per_s: float | None = Field(default=None, gt=0)
    admin: bool = False

    @model_validator(mode="after")
    def _check_known_by_something(self) -> Self:
        if not self.token_sha256 and not self.certificate_names:
            raise ValueError("a principal needs token_sha256, certificate_names or both")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    principals: dict[Name, _Entry]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        owners: dict[str, str] = {}
        for principal, entry in self.principals.items():
            for name in entry.certificate_names:
                owner = owners.setdefault(name, principal)
                if owner != principal:
                    raise ValueError(
                        f"principals {owner} and {principal} both have the certificate name {quoted(name)}"
                    )
        return self


class Principals:
    """Finds the caller of a call.

    on_error: called if the file can no longer be read; the principals that were read before stay. on_change: called
    after the file was read again because it changed. has_client_certificates: whether clients must have certificates;
    if not, no principal may have certificate names. clock: monotonic seconds.

    Event loop only. Raises TokenFileError if the file is invalid at the start.
    """

    def __init__(
        self,
        path: Path,
        on_error: Callable[[TokenFileError], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        has_client_certificates: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._on_change = on_change
        self._has_client_certificates = has_client_certificates
        self._on_error = on_error
        self._clock = clock
        self._problem = ""
        self._callers: dict[str, Caller] = {}
        self._by_digest: list[tuple[bytes, Caller]] = []
        self._by_name: dict[str, Caller] = {}
        self._seen = self._stamp()
        self._looked_at_s = clock()
        self._take(self._read())

    def find(self, authorization: str | None, auth_context: AuthContext) -> Caller:
        """Returns the caller for an `authorization` header; without one, for the client's certificate. Raises
        UnauthenticatedError, which shows the names of the certificate, but nothing of the header."""
        self._look()
        if authorization is None:
            return self._find_by_certificate(auth_context)
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError("the authorization header has another scheme: expected `Bearer TOKEN`")
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip().encode()).digest()
        found = None
        for known, caller in self._by_digest:  # no early exit: the time must reveal nothing
            if secrets.compare_digest(known, digest):
                found = caller
        if found is None:
            raise UnauthenticatedError("the token is unknown: no principal of this server has it")
        return found

    def _find_by_certificate(self, auth_context: AuthContext) -> Caller:
        if not self._has_client_certificates:
            raise UnauthenticatedError("the call has no authorization header: expected `Bearer TOKEN`")
        names = names_of(auth_context())
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        if names:
            seen = f"no principal has one of the names of the client's certificate, {quoted(names)}"
        else:
            seen = "the client's certificate has no URI, no DNS name and no single common name"
        raise UnauthenticatedError(
            f"the call has no authorization header, and {seen}: send `Bearer TOKEN`, or a certificate with a name that"
            " is in a principal's certificate_names"
        )

    def reload(self) -> bool:
        """Reads the file now, even if it has not changed. Returns whether it is valid. If it is not, calls `on_error`
        and keeps the principals that were read before."""
        self._problem = ""
        return self._reload()

    def _look(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        try:
            is_changed = self._stamp() != self._seen
        except TokenFileError as error:
            self._report(error)
            return
        if is_changed:
            if self._reload():
                self._on_change()
        else:
            self._problem = ""

    def _reload(self) -> bool:
        try:
            self._seen = self._stamp()
            self._take(self._read())
        except TokenFileError as error:
            self._report(error)
            return False
        self._problem = ""
        return True

    def _report(self, error: TokenFileError) -> None:
        """Calls `on_error`, once for each problem, because the file is checked every second."""
        if str(error) != self._problem:
            self._problem = str(error)
            self._on_error(error)

    def _take(self, file: _File) -> None:
        self._by_digest, self._by_name = [], {}
        for name, entry in file.principals.items():
            principal = Principal(
                name,
                is_admin=entry.admin,
                max_sessions=entry.max_sessions,
                max_requests_per_s=entry.max_requests_per_s,
            )
            caller = self._callers.setdefault(name, Caller(principal, self._clock))
            caller.principal = principal
            self._by_digest += [(bytes.fromhex(digest), caller) for digest in entry.token_sha256]
            self._by_name |= dict.fromkeys(entry.certificate_names, caller)

    def _read(self) -> _File:
        file = _read(self._path)
        named = [name for name, entry in file.principals.items() if entry.certificate_names]
        if named and not self._has_client_certificates:
            raise TokenFileError(
                f"tokens_file = {self._path}: principals.{named[0]}.certificate_names: this server does not request"
                " client certificates: set tls_client_ca_file, or remove certificate_names"
            )
        return file

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise TokenFileError(f"tokens_file = {self._path} cannot be read: {error.strerror}") from None
        return status.st_mtime_ns, status.st_ino


class Unauthenticated:
    """Finds the caller if there is no file of principals: all clients are one principal, which has no name and may do
    everything."""

    def find(self, authorization: str | None, auth_context: AuthContext) -> Caller:
        """Returns the caller without a name."""
        return NOBODY

    def reload(self) -> bool:
        """Does nothing, because there is no file to read."""
        return True


def new_token() -> tuple[str, str]:
    """Returns a new token, and its hash for the file."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise TokenFileError(f"tokens_file = {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TokenFileError(f"tokens_file = {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise TokenFileError(f"tokens_file = {path}: {'; '.join(map(_message, error.errors()))}") from None


def _message(problem: ErrorDetails) -> str:
    reason = _reason(problem)
    return ": ".join((*filter(None, (".".join(map(str, problem["loc"])),)), reason))


def _reason(problem: ErrorDetails) -> str:
    kind, place = problem["type"], problem["loc"]
    if kind == "string_pattern_mismatch" and "token_sha256" in place:
        return "it must be the SHA-256 of a token, 64 hexadecimal digits, as `python -m service token NAME` prints it"
    if kind == "extra_forbidden" and place[0] == "principals":
        return f"unknown field: expected one of {', '.join(_Entry.model_fields)}"
    if kind in ("extra_forbidden", "missing") and len(place) == 1:
        what = "is missing" if kind == "missing" else "is unknown"
        return f"{what}: the file has a table [principals.NAME] for each principal"
    return str(problem.get("ctx", {}).get("error", problem["msg"]))

"""The connection of every command: its options, the client that they make, and its error texts."""

from __future__ import annotations

import inspect
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from carousel._connecting import Cause, cause_of
from carousel.async_client import AsyncClient
from carousel.cli.failures import CLOSED_OUTPUT, leave_output
from carousel.cli.reading import InputError
from carousel.client import Client
from carousel.errors import CarouselError, DeadlineExceededError, UnavailableError

TARGET = "localhost:50051"
"""A server on this machine at its default port."""
_TIMEOUT_S = 60.0
_CAUSES = (
    re.compile(r".*(?:to remote host: |last error: [A-Z]+: \S+: |lookup failed for [^ ]*: )(.+?)\]?$", re.DOTALL),
    re.compile(r".*(Tls handshake failed) .*OPENSSL_internal:(\w+)", re.DOTALL),
)
"""Match the cause in gRPC's texts about a failed connection, without the addresses that it tried."""
_OF_CLIENT_CERTIFICATE = (Cause.CLOSED, Cause.CLIENT_CERTIFICATE)
"""What gRPC reports over TLS when the server requires a client certificate."""
_OR_PROXY = "; a proxy also does this while the server behind it starts"
_ADVICE = {
    Cause.PLAIN_TEXT_SERVER: "leave out --tls, --ca, --cert and --key, or give the port with TLS (-t HOST:PORT)",
    Cause.DATES: Cause.DATES.advice,
    Cause.NAME: "give a name in the certificate (-t HOST:PORT)",
    Cause.AUTHORITY: "give the PEM file of the authority (--ca)",
    Cause.CLIENT_CERTIFICATE: "give one (--cert, --key)",
    Cause.NO_HTTP_2: "give a port of a Carousel server (-t HOST:PORT), or, if this one requires TLS, --tls or --ca",
    Cause.CLOSED: f"if it requires a client certificate, give one (--cert, --key){_OR_PROXY}",
}
"""Which options to try, for each cause."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection options of a command or of the whole command line; None where an option is not given.

    ca: of the server's certificate. cert, key: the caller's own.
    """

    target: str | None = None
    token: str | None = field(default=None, repr=False)
    tls: bool | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout: float | None = None

    def over(self, other: Connection) -> Connection:
        """Returns these options, completed by those of `other`."""
        own = (getattr(self, one.name) for one in fields(self))
        others = (getattr(other, one.name) for one in fields(self))
        return Connection(*(a if a is not None else b for a, b in zip(own, others, strict=True)))

    @property
    def address(self) -> str:
        """The server's address, in gRPC's form."""
        return TARGET if self.target is None else self.target

    @property
    def timeout_s(self) -> float:
        """Seconds for each call."""
        return _TIMEOUT_S if self.timeout is None else self.timeout

    def client(self) -> Client:
        """Makes a client; the caller must close it. Raises typer.BadParameter for options that cannot be combined,
        OSError for a file that cannot be read, and InputError for a file with wrong content."""
        return Client(self.address, **self._options())

    def async_client(self) -> AsyncClient:
        """Makes an asyncio client; the caller must close it. Raises the errors of `client`."""
        return AsyncClient(self.address, **self._options())

    def explained(self, error: CarouselError) -> CarouselError:
        """Returns an error with a one-sentence text if gRPC's own text has several."""
        if isinstance(error, UnavailableError) and not error.reason:
            cause = cause_of(error.message)
            if cause is not None:
                return UnavailableError(
                    f"cannot connect to {self.address}: {cause.happened}: {self._advice(cause)}", reason="NOT_REACHED"
                )
            found = [match for pattern in _CAUSES if (match := pattern.match(error.message))]
            reason = ": ".join(found[-1].groups()) if found else error.message
            return UnavailableError(
                f"no Carousel server can be reached at {self.address}: {reason} (-t HOST:PORT chooses another server)",
                reason="NOT_REACHED",
            )
        if isinstance(error, DeadlineExceededError) and not error.reason:
            return DeadlineExceededError(
                f"{self.address} did not answer within {self.timeout_s:g} s (--timeout)", reason="DEADLINE_EXCEEDED"
            )
        return error

    @property
    def _has_tls(self) -> bool:
        return bool(self.tls or self.ca or self.cert)

    def _advice(self, cause: Cause) -> str:
        """Returns which options to try."""
        if cause is Cause.CLOSED and not self._has_tls:
            return f"if it requires TLS, give --tls, or --ca with the PEM file of its authority{_OR_PROXY}"
        if cause in _OF_CLIENT_CERTIFICATE and self.cert:
            return "give a certificate from an authority that the server trusts (--cert, --key)"
        return _ADVICE[cause]

    def _options(self) -> dict[str, Any]:
        if ":" not in self.address.strip(":"):
            raise typer.BadParameter(f"{self.address!r} must be HOST:PORT", param_hint="--target")
        if (self.cert is None) != (self.key is None):
            raise typer.BadParameter("--cert and --key must be given together")
        credentials = None
        if self._has_tls:
            ca, key, cert = _read(self.ca), _read(self.key), _read(self.cert)
            self._check_files()
            credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return {"credentials": credentials, "token": self.token, "timeout": self.timeout_s}

    def _check_files(self) -> None:
        """Raises InputError for wrong files. gRPC would only report that it cannot connect."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise InputError(f"{self.ca} has no certificate of an authority in PEM: {error.reason}") from None
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            text = f"{self.cert} and {self.key} are not a certificate and its private key in PEM: {error.reason}"
            raise InputError(text) from None


def connected(command: Callable[..., Any], *, is_first: bool = False) -> Callable[..., Any]:
    """Adds the connection options to a command or group. `context.obj` becomes the Connection.

    Options after a command's name override those before it. is_first: for the whole command line: also read the
    environment variables.
    """
    own = inspect.signature(command, eval_str=True)
    added = _options(is_first=is_first)

    @wraps(command)
    def run(context: typer.Context, **given: Any) -> None:
        values = {option.name: given.pop(option.name) for option in added}
        _check_text([*given.values(), values["target"]])
        token_file: Path | None = values.pop("token_file")
        if token_file is not None:
            values["token"] = token_file.read_text(encoding="utf-8").strip()
        context.obj = Connection(**values).over(context.obj or Connection())
        try:
            command(context, **given)
        except CarouselError as error:
            raise context.obj.explained(error) from None
        except BrokenPipeError:
            leave_output()
            raise typer.Exit(CLOSED_OUTPUT) from None

    parameters = [*own.parameters.values(), *added]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads this attribute
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _options(*, is_first: bool) -> list[inspect.Parameter]:
    """The connection options, as parameters of a command."""

    def option(name: str, kind: Any, help_: str, *names: str, **settings: Any) -> inspect.Parameter:
        variable: str | None = settings.pop("envvar", None)
        option_info = typer.Option(
            *names,
            help=help_,
            envvar=variable if is_first else None,
            rich_help_panel="Connection",
            show_default=False,
            **settings,
        )
        annotation = Annotated[kind, option_info]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    path = Path | None
    return [
        option(
            "target",
            str | None,
            f"Host and port; by default {TARGET}.",
            "--target",
            "-t",
            envvar="CAROUSEL_TARGET",
        ),
        option("token", str | None, "Token that identifies you to the server.", "--token", envvar="CAROUSEL_TOKEN"),
        option("token_file", path, "File with the token.", "--token-file"),
        option("tls", bool | None, "Use TLS, with the authorities that this machine trusts.", "--tls"),
        option("ca", path, "PEM file of the authority of the server's certificate.", "--ca"),
        option("cert", path, "PEM file of your own certificate.", "--cert"),
        option("key", path, "PEM file of the private key of --cert.", "--key"),
        option("timeout", float | None, f"Seconds for each call; by default {_TIMEOUT_S:g}.", "--timeout", min=0.001),
    ]


def _check_text(values: list[Any]) -> None:
    """Raises UnicodeEncodeError for an argument that is not UTF-8 text. Paths may have any bytes."""
    for value in values:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, list):
            _check_text(value)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()

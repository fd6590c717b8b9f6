"""Finds in gRPC's error details why a connection could not be made, and what to try. Pure.

gRPC reports the same error, a closed socket, when the server requires TLS and when it refuses the client's certificate.
gRPC does not know whether the client uses TLS. A caller that knows can give better advice, based on `Cause`.
"""

from __future__ import annotations

import re
from enum import Enum

_NOT_CONNECTED = "failed to connect to all addresses"


class Cause(Enum):
    """Why a connection could not be made: a pattern for gRPC's details, what happened, and what to try in Python."""

    PLAIN_TEXT_SERVER = (
        "WRONG_VERSION_NUMBER",
        "the server does not use TLS at this port",
        "leave `credentials` out, or connect to a port with TLS",
    )
    DATES = (
        "certificate has expired|certificate is not yet valid",
        "the server's certificate has expired or is not valid yet",
        "replace it, or correct this machine's clock",
    )
    NAME = (
        "Hostname Verification Check failed",
        "the server's certificate has another name than the target",
        "connect to a name in the certificate, or set the channel option `grpc.ssl_target_name_override` to one",
    )
    AUTHORITY = (
        "CERTIFICATE_VERIFY_FAILED|(?:RSA|ECDSA) routines",
        "the client does not trust the authority of the server's certificate",
        "pass its PEM: credentials=grpc.ssl_channel_credentials(ca)",
    )
    CLIENT_CERTIFICATE = (
        "TSI_DATA_CORRUPTED|ALERT_(?:HANDSHAKE_FAILURE|BAD_CERTIFICATE|CERTIFICATE_|UNKNOWN_CA|DECRYPT_ERROR)",
        "the server requires a client certificate from an authority that it trusts",
        "pass one with its key: credentials=grpc.ssl_channel_credentials(ca, key, certificate)",
    )
    NO_HTTP_2 = (
        "Failed parsing HTTP/2",
        "the server does not answer in HTTP/2 at this port",
        "connect to a port of a Carousel server, or, if this one requires TLS, pass `credentials`",
    )
    CLOSED = (
        "Socket closed|Connection reset|Broken pipe|recvmsg:|sendmsg:",
        "the server closed the new connection",
        "if it requires TLS, pass `credentials`, with a client certificate and its key if it requires one; a proxy also"
        " does this while the server behind it starts",
    )

    def __init__(self, pattern: str, happened: str, advice: str) -> None:
        self.pattern = re.compile(pattern)
        self.happened = happened
        self.advice = advice


def cause_of(details: str) -> Cause | None:
    """Returns the likely cause. None when the details do not show it, or when the call had a connection.

    details: those of the gRPC error, or a text that contains them.
    """
    if _NOT_CONNECTED not in details:
        return None
    return next((cause for cause in Cause if cause.pattern.search(details)), None)


def explained(details: str, cause: Cause) -> str:
    """Returns a sentence for users of the Python client, followed by gRPC's details."""
    return f"{cause.happened}: {cause.advice} ({details})"

"""A handler gets a client's certificate from Envoy as it does from gRPC, and only if Envoy verifies certificates."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire.envoy.browsers import Browsers
from service.wire.envoy.headers import certificate_of, metadata_of, size_of
from service.wire.envoy.host import Host
from tests.certificates import Authority

PEM = Authority().certificate
HASH = b"Hash=" + b"0a" * 32


def certificate_header(pem: bytes = PEM, before: bytes = b"") -> bytes:
    """Returns the header as Envoy writes it."""
    return before + HASH + b';Cert="' + quote(pem, safe="").encode() + b'"'


@given(st.binary(min_size=1), st.sampled_from([b"", b"By=spiffe://corp/server;", b'By=a;By=b;Cert="x;Hash=;,";']))
def test_the_certificate_is_what_envoy_was_given(pem: bytes, before: bytes) -> None:
    """The names of the server's own certificate, which come before it, do not matter."""
    assert certificate_of(certificate_header(pem, before)) == pem


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"x",
        HASH,
        HASH + b';Cert=""',
        HASH + b';Cert="x',
        b'Cert="x"',
        certificate_header() + b";URI=x",
        certificate_header() + b"," + HASH,
    ],
)
def test_malformed_certificate_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"^x-forwarded-client-cert is b'.*: expected Hash and Cert"):
        certificate_of(header)


@given(st.binary())
def test_any_other_bytes_are_refused_with_a_short_message(header: bytes) -> None:
    with pytest.raises(ValueError, match="expected Hash and Cert") as refusal:
        certificate_of(header)
    assert len(str(refusal.value)) < 400


def test_the_certificate_header_is_not_metadata() -> None:
    headers = [(b"x-forwarded-client-cert", certificate_header()), (b"authorization", b"Bearer x")]
    assert metadata_of(headers) == (("authorization", "Bearer x"),)
    assert size_of(headers) == size_of(headers[1:])


class LetAll(grpc.aio.ServerInterceptor):
    """An interceptor that does nothing."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)


@pytest.mark.parametrize(("is_verified", "expected"), [(True, [PEM]), (False, None)])
async def test_a_handler_gets_the_certificate_only_if_envoy_verifies_it(
    is_verified: bool, expected: list[bytes] | None
) -> None:
    host = Host(
        LetAll(),
        Browsers("127.0.0.1", (), None),
        None,
        max_message_bytes=1000,
        max_metadata_bytes=1000,
        has_client_certificates=is_verified,
    )
    seen: list[tuple[Any, Any]] = []

    async def behave(request: bytes, context: Any) -> bytes:
        seen.append((context.auth_context(), context.invocation_metadata()))
        return b""

    host.add_registered_method_handlers("s", {"m": grpc.unary_unary_rpc_method_handler(behave)})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(5), "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"host", b"localhost")]
    headers.append((b"x-forwarded-client-cert", certificate_header()))
    scope = {
        "method": "POST",
        "path": "/s/m",
        "raw_path": b"/s/m",
        "query_string": b"",
        "http_version": "2",
        "headers": headers,
        "client": None,
    }
    await host.serve(scope, receive, send)
    assert sent[-1]["headers"] == [(b"grpc-status", b"0")]
    assert seen == [({} if expected is None else {"x509_pem_cert": expected}, ())]

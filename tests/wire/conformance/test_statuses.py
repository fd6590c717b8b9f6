"""How calls end: every status, for each kind of method, in each way in which a handler can set it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from examples.local_service import LocalService
from tests.wire.conformance.calls import client, framed, path, read
from tests.wire.conformance.http2 import Connection, call_headers
from tests.wire.conformance.servicer import METHODS, struct

DETAILS = "100% of «ñandú» — “ok”?\n\r\ttab ~ \x7f end"
ERRORS = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["abort", "set"])
async def test_every_status_reaches_the_client_with_its_words_and_its_metadata(
    service: LocalService, method: str, how: str
) -> None:
    trailers = [["k", " two words "], ["k", "again"], ["k-bin", "00ff0a"], ["empty", ""], ["empty-bin", ""]]
    async with client(service.target) as one:
        for code in ERRORS:
            _, error = await one.ended(
                method, do="end", code=code.value[0], details=DETAILS, trailers=trailers, how=how
            )
            assert error is not None
            assert (error.code(), error.details()) == (code, DETAILS)
            metadata = error.trailing_metadata()
            assert metadata is not None
            assert [value.strip() for value in metadata.get_all("k")] == ["two words", "again"]
            assert metadata["k-bin"] == b"\x00\xff\x0a"
            assert (metadata["empty"], metadata["empty-bin"]) == ("", b"")


@pytest.mark.parametrize("method", METHODS)
async def test_ok_may_have_metadata(service: LocalService, method: str) -> None:
    async with client(service.target) as one:
        request = struct(do="end", code=0, how="set", trailers=[["k", "v"], ["k-bin", "00"]])
        if method in ("Unary", "ClientStream"):
            call = one.unary(request) if method == "Unary" else one.client_stream(iter([request]))
        else:
            call = one.server_stream(request) if method == "ServerStream" else one.stream(iter([request]))
            assert len([response async for response in call]) == 1
        assert await call.code() is grpc.StatusCode.OK
        metadata = await call.trailing_metadata()
        assert (metadata["k"], metadata["k-bin"]) == ("v", b"\0")


@pytest.mark.parametrize("method", ["ServerStream", "Stream"])
async def test_responses_that_were_written_come_before_the_status(service: LocalService, method: str) -> None:
    async with client(service.target) as one:
        for do in ({"do": "end", "code": 5, "details": "d"}, {"do": "raise", "text": "t"}):
            found, error = await one.ended(method, after=3, **do)
            assert found == [{"before": True}] * 3
            assert error is not None
            assert error.code() is (grpc.StatusCode.NOT_FOUND if do["do"] == "end" else grpc.StatusCode.UNKNOWN)


@pytest.mark.parametrize("method", METHODS)
async def test_a_handler_that_raises_ends_its_call_and_no_other(service: LocalService, method: str) -> None:
    async with client(service.target) as one:
        other = one.stream()
        await other.write(struct(first=1))
        assert read(await other.read()) == {"first": 1.0}
        found, error = await one.ended(method, do="raise", text="boom")
        assert (found, error and error.code()) == ([], grpc.StatusCode.UNKNOWN)
        await other.write(struct(second=2))
        assert read(await other.read()) == {"second": 2.0}
        await other.done_writing()
        assert await other.code() is grpc.StatusCode.OK


async def test_details_travel_beside_the_status(service: LocalService) -> None:
    """They are in the trailer `grpc-status-details-bin`."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason="REASON", metadata={"ñ": "%"}))
    status = status_pb2.Status(code=9, message=DETAILS, details=[detail])
    (packed,) = [value for name, value in rpc_status.to_status(status).trailing_metadata]
    async with client(service.target) as one:
        trailers = [["grpc-status-details-bin", packed.hex()]]
        _, error = await one.ended("Unary", do="end", code=9, details=DETAILS, trailers=trailers)
        assert error is not None
        assert rpc_status.from_call(error) == status


@pytest.mark.parametrize("method", ["Unary", "Stream"])
async def test_initial_metadata_comes_before_the_first_response(service: LocalService, method: str) -> None:
    headers = [["k", "v"], ["k", "w"], ["k-bin", "ff"]]
    async with client(service.target) as one:
        request = struct(do="headers", headers=headers)
        call = one.unary(request) if method == "Unary" else one.stream(iter([request]))
        metadata = await call.initial_metadata()
        assert (metadata.get_all("k"), metadata["k-bin"]) == (["v", "w"], b"\xff")
        if method == "Stream":
            assert len([response async for response in call]) == 1
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("name", "value"),
    [("Upper", "v"), ("a b", "v"), ("", "v"), (":status", "v"), ("k", "a\nb"), ("k", "a\0b"), ("k", "é")],
)
@pytest.mark.parametrize("where", ["headers", "trailers"])
async def test_a_call_with_invalid_response_metadata_never_ends_in_ok(
    service: LocalService, where: str, name: str, value: str
) -> None:
    request: dict[str, Any] = {"do": "headers", "headers": [[name, value]]}
    if where == "trailers":
        request = {"do": "end", "code": 5, "details": "d", "trailers": [[name, value]]}
    async with client(service.target) as one:
        _, error = await one.ended("Unary", **request)
        assert error is not None
        assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def test_a_code_that_grpc_does_not_know_is_unknown(service: LocalService) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary")), framed(do="end", code=77, details="d", how="set"))
        assert (answer.http_status, answer.status, answer.message) == ("200", 2, "d")


@pytest.mark.parametrize("code", [code.value[0] for code in ERRORS])
def test_a_status_is_sent_as_the_protocol_has_it(service: LocalService, code: int) -> None:
    """The message is percent-encoded, the HTTP status is 200, and the stream ends once."""
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary")), framed(do="end", code=code, details="é% \n~"))
        assert (answer.http_status, answer.status, answer.reset) == ("200", code, None)
        assert answer.message == "%C3%A9%25 %0A~"
        assert answer.headers["content-type"].startswith("application/grpc")


def test_a_method_that_does_not_exist_is_unimplemented(service: LocalService) -> None:
    with Connection(service.target) as one:
        for name in (path("Nope"), "/", "/x", "/no.such.Service/Unary", path("Unary") + "/", path("unary")):
            assert one.ask(call_headers(name), framed()).status == 12

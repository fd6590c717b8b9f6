"""Each error of the domain has a gRPC status, and its facts reach the client in both documented forms."""

from __future__ import annotations

import ast
import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import service
from carousel.v1 import error_pb2
from service import errors
from service.api.status import DOMAIN, METADATA_KEY, TABLE, abort, to_message

SOURCES = sorted(Path(service.__file__).parent.rglob("*.py"))
NAMES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}


def subclasses(root: type[errors.CarouselError]) -> Iterator[type[errors.CarouselError]]:
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


def made_in(source: Path) -> set[str]:
    """Returns the names of the error classes that a module creates."""
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} & NAMES


class Aborted(Exception):
    """Stands for the exception that a real context raises when a call is aborted."""


class Context:
    """The part of a gRPC context that `abort` uses."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> NoReturn:
        self.code, self.details, self.metadata = code, details, dict(trailing_metadata)
        raise Aborted


async def aborted(error: errors.CarouselError) -> Context:
    context: Any = Context()
    with pytest.raises(Aborted):
        await abort(context, error, "the-call")
    assert isinstance(context, Context)
    return context


def details(context: Context) -> dict[str, Any]:
    """Returns the details of the status with which a call was aborted, by the name of their type."""
    status = status_pb2.Status.FromString(context.metadata["grpc-status-details-bin"])
    assert status.code == context.code.value[0]
    assert status.message == context.details
    found: dict[str, Any] = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    assert len(found) == len(status.details)
    return found


def test_every_leaf_of_the_tree_of_errors_has_a_row() -> None:
    leaves = {kind for kind in subclasses(errors.CarouselError) if not kind.__subclasses__()}
    assert leaves
    assert leaves <= set(TABLE)


def test_every_error_that_the_server_makes_has_a_row() -> None:
    """Error classes that have subclasses are included."""
    rows = {kind.__name__ for kind in TABLE}
    assert {source.name: made_in(source) - rows for source in SOURCES if made_in(source) - rows} == {}


def test_every_row_is_of_an_error_that_the_server_makes() -> None:
    made = set().union(*(made_in(source) for source in SOURCES))
    assert {kind.__name__ for kind in TABLE} <= made


def test_reasons_are_unique_stable_names() -> None:
    reasons = [row.reason for row in TABLE.values()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isupper() and reason.replace("_", "").isalnum() for reason in reasons)


@pytest.mark.parametrize(
    ("root", "codes"),
    [
        (errors.InvalidFieldError, {grpc.StatusCode.INVALID_ARGUMENT}),
        (
            errors.CallerError,
            {
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.ALREADY_EXISTS,
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.OUT_OF_RANGE,
                grpc.StatusCode.DATA_LOSS,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNIMPLEMENTED,
            },
        ),
        (
            errors.LoadError,
            {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED},
        ),
        (errors.ServerError, {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}),
        (errors.RequestCancelledError, {grpc.StatusCode.CANCELLED}),
    ],
)
def test_the_status_code_matches_whose_fault_the_error_is(
    root: type[errors.CarouselError], codes: set[grpc.StatusCode]
) -> None:
    assert {row.code for kind, row in TABLE.items() if issubclass(kind, root)} == codes


@pytest.mark.parametrize("kind", TABLE)
def test_a_message_carries_the_code_the_text_and_the_reason(kind: type[errors.CarouselError]) -> None:
    message = to_message(kind("what is wrong"))
    row = TABLE[kind]
    assert message == error_pb2.Error(code=row.code.value[0], message="what is wrong", reason=row.reason)
    assert not message.HasField("retry_delay")


def test_a_message_carries_field_facts_and_retry_delay() -> None:
    error = errors.QueueFullError("full", field="feed", retry_delay_s=1.25, max_waiting=7, model="g2p-en")
    message = to_message(error)
    assert message.code == 8
    assert message.reason == "QUEUE_FULL"
    assert message.field == "feed"
    assert dict(message.metadata) == {"max_waiting": "7", "model": "g2p-en"}
    assert message.retry_delay.ToNanoseconds() == 1_250_000_000


def test_a_class_without_a_row_is_no_message() -> None:
    """The server never raises `LoadError` itself."""
    with pytest.raises(KeyError):
        to_message(errors.LoadError("full"))


async def test_a_failed_call_carries_the_standard_details() -> None:
    error = errors.TooManySessionsError("full", field="session_id", retry_delay_s=0.1, max_sessions=3)
    context = await aborted(error)
    assert context.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.details == "full"
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="session_id", description="full", reason="TOO_MANY_SESSIONS"
    )
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(100)
    assert details(context) == {
        "ErrorInfo": error_details_pb2.ErrorInfo(
            reason="TOO_MANY_SESSIONS", domain=DOMAIN, metadata={"max_sessions": "3"}
        ),
        "BadRequest": error_details_pb2.BadRequest(field_violations=[violation]),
        "RetryInfo": delay,
        "RequestInfo": error_details_pb2.RequestInfo(request_id="the-call"),
    }
    assert context.metadata["x-request-id"] == "the-call"


async def test_a_failed_call_carries_no_empty_detail() -> None:
    context = await aborted(errors.ModelNotFoundError("no such model"))
    assert list(details(context)) == ["ErrorInfo", "RequestInfo"]


@pytest.mark.parametrize("kind", TABLE)
async def test_a_failed_call_carries_our_own_message_too(kind: type[errors.CarouselError]) -> None:
    """Clients without the googleapis types read this message. Its text may be other than ASCII."""
    error = kind("source.text[0] = 'é'", field="source.text[0]", retry_delay_s=2.0, model="g2p-en")
    context = await aborted(error)
    assert context.code is TABLE[kind].code
    assert error_pb2.Error.FromString(context.metadata[METADATA_KEY]) == to_message(error)


def size_of(context: Context) -> int:
    """Returns the size of a status as gRPC counts it: each metadata entry counts 32 bytes more than its key and
    value."""
    text = sum(1 if " " <= one <= "~" else 3 * len(one.encode()) for one in context.details)
    metadata = [
        (key, value.encode() if isinstance(value, str) else base64.b64encode(value))
        for key, value in context.metadata.items()
    ]
    return text + sum(32 + len(key) + len(value) for key, value in metadata)


@pytest.mark.parametrize("letter", ["m", "é", "\N{GRINNING FACE}", "\0"])
@pytest.mark.parametrize("length", [10, 1000, 5000, 4_000_000])
async def test_a_failed_calls_status_fits_what_clients_take_whatever_it_quotes(letter: str, length: int) -> None:
    """Clients accept 8 KiB by default. For a larger status they report a transport error instead."""
    text = letter * length
    error = errors.ModelNotFoundError(
        f"model = {text} is not here", field=text, retry_delay_s=1.0, model=text, owner=text, variant=text
    )
    context = await aborted(error)
    assert size_of(context) <= 8 * 1024 - 512
    assert context.code is grpc.StatusCode.NOT_FOUND
    assert context.details.startswith(f"model = {letter * 8}")
    assert details(context)["ErrorInfo"].reason == "MODEL_NOT_FOUND"
    assert error_pb2.Error.FromString(context.metadata[METADATA_KEY]).reason == "MODEL_NOT_FOUND"


def test_a_message_in_a_stream_is_bounded_too() -> None:
    message = to_message(errors.ModelNotFoundError("x" * 10**6, field="f" * 10**6, model="m" * 10**6))
    assert (len(message.message), len(message.field), len(message.metadata["model"])) == (2000, 200, 200)
    assert message.message.endswith("x...")

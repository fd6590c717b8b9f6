"""What engine and sessions report, and to whom: a small protocol that metrics and logs implement.

Implementations must be quick, must not raise, and must be safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

GraphKind = Literal["encoder", "step", "readout"]


class BatchReport(NamedTuple):
    """One run of a graph.

    num_rows: sessions advanced; num_tokens: tokens consumed by them; capacity: rows times time of the padded run;
    queue_s: time from submission to the batch's start, one for each request that began in it; gather_s, run_s,
    commit_s: assembling the batch, running the graph, decoding and storing its results.
    """

    kind: GraphKind
    num_rows: int
    num_tokens: int
    capacity: int
    queue_s: tuple[float, ...]
    gather_s: float
    run_s: float
    commit_s: float


class RequestTrace(Protocol):
    """Follows one request through the server. trace_id: 32 hexadecimal digits."""

    trace_id: str

    def batch_ran(self, report: BatchReport) -> None:
        """A batch that the request has a part in is done, just now. Called by the engine's thread."""

    def ended(self, request: str, model: str, version: int, num_tokens: int) -> None:
        """It was answered in full. Called by the event loop."""


@dataclass(slots=True)
class CallReport:
    """One gRPC call, complete when it has ended. Event loop only.

    request_id: the caller's `x-request-id`, or one that the server made; method: such as
    `/carousel.v1.Inference/Stream`; peer: the connection it came by; is_known: whether the server has the method;
    principal: empty until it is known, and without a file of principals. models: those that the call used, by name.
    num_messages_in, num_messages_out: requests that were read, responses that were made; num_tokens_in,
    num_tokens_out: tokens or vectors that were fed or scored, and those that were generated; num_failed: requests of a
    stream that were refused or failed. code: the gRPC status code's name; reason: of `carousel.v1.Error`, if it has
    one; duration_s: seconds until it ended; trace_id: empty when the call is not traced. others_session: the session of
    another principal's that its admin named, `principal/id`.
    """

    request_id: str
    method: str
    peer: str
    is_known: bool = True
    principal: str = ""
    models: set[str] = field(default_factory=set)
    num_messages_in: int = 0
    num_messages_out: int = 0
    num_tokens_in: int = 0
    num_tokens_out: int = 0
    num_failed: int = 0
    code: str = "OK"
    reason: str = ""
    duration_s: float = 0.0
    trace_id: str = ""
    others_session: str = ""

    @property
    def model(self) -> str:
        """The call's one model; empty when it used none, or several."""
        return next(iter(self.models)) if len(self.models) == 1 else ""

    def used(self, model: str) -> None:
        """The call used a model; an empty name says nothing."""
        if model:
            self.models.add(model)


CALL: ContextVar[CallReport] = ContextVar("call")


def current_call() -> CallReport:
    """The call that is being handled, for its handler to add to; outside of calls a report that nobody reads."""
    return CALL.get(None) or CallReport("", "", "")


class CallTrace(Protocol):
    """Follows one gRPC call. Called by the event loop. trace_id: 32 hexadecimal digits."""

    trace_id: str

    def request(self) -> RequestTrace:
        """A request in it was read."""

    def ended(self, report: CallReport) -> None:
        """The call has ended."""


CALL_TRACE: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
"""Of the call that is being handled, when it is traced."""


class EngineObserver(Protocol):
    """Hears what one model's engine does. is_tracing: whether it wants to know whose batches they are."""

    is_tracing: bool

    def batch_traced(self, tags: Sequence[Any], report: BatchReport) -> None:
        """A batch is done, in which the jobs with these tags have a part. Called by the engine's thread, if
        `is_tracing`, after `batch_ran`."""

    def batch_ran(self, report: BatchReport) -> None:
        """A batch is done. Called by the engine's thread."""

    def batch_failed(self, kind: GraphKind, num_rows: int, error: BaseException) -> None:
        """A run of a graph raised `error`. Called by the engine's thread."""


class SessionObserver(Protocol):
    """Hears what becomes of sessions. Called by the event loop."""

    def session_opened(self, model: str, version: int, session_id: str) -> None:
        """A session was opened."""

    def session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """A session was closed. reason: the lower-case name of a `CloseReason`."""

    def stored_session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """A session that the store alone had was closed. reason: as for `session_closed`."""

    def session_resumed(self, model: str, version: int, session_id: str, source: str) -> None:
        """A session was gone on with. source: `memory` or `store`."""

    def session_detached(self, model: str, version: int, session_id: str) -> None:
        """Its stream has ended, and it waits to be gone on with."""

    def session_spilled(self, model: str, version: int, session_id: str) -> None:
        """Its state has left the memory, to make room."""

    def session_unspilled(self, model: str, version: int, session_id: str) -> None:
        """It is spilled no more: its state has come back, or it was closed."""

    def first_token(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """A generation gave its first tokens, so long after it was asked for."""

    def next_tokens(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """A generation went on. seconds: since its last token, divided by the tokens that came."""

    def request_replayed(self, model: str, version: int, request: str) -> None:
        """A feed, a generation or a step batch was sent again, and is answered again."""

    def snapshot_made(self, num_bytes: int) -> None:
        """A session was made bytes, for a client."""

    def tokens_moved(self, model: str, version: int, request: str, num_tokens: int) -> None:
        """A request that was cancelled or failed had moved its session by tokens before."""

    def request_answered(
        self, model: str, version: int, request: str, seconds: float, num_tokens: int, *, trace: RequestTrace | None
    ) -> None:
        """A request was answered in full, so long after it was read. num_tokens: those that were not reported as they
        came, as a generation's are."""


class StoreObserver(Protocol):
    """Hears of the store of sessions' records. Called by the event loop."""

    def records_written(self, sizes: Sequence[int], seconds: float) -> None:
        """A batch of records was written, in so long. sizes: in bytes, one for each."""

    def record_read(self, seconds: float) -> None:
        """A record was looked for, in so long."""

    def session_stored(self, seconds: float) -> None:
        """A session's checkpoint was written, so long after it had moved."""

    def operation_failed(self, operation: str) -> None:
        """The store has failed to do something: `read`, `write`, `heartbeat` or `upkeep`."""

    def store_failed(self, error: BaseException) -> None:
        """The store does not answer, or cannot write. Told once, until it works again."""

    def store_recovered(self) -> None:
        """It works again."""

    def store_at_risk(self, reason: str) -> None:
        """The store's settings put at risk what it has acknowledged. reason: empty when they do so no more."""

    def record_corrupt(self, session_id: str, error: BaseException) -> None:
        """A record cannot be read, and is set aside."""


class ModelObserver(Protocol):
    """Hears of versions of models. Called by the event loop."""

    def model_loaded(self, model: str, version: int, variants: list[str]) -> None:
        """A version is served."""

    def model_failed(self, model: str, version: int, reason: str) -> None:
        """A version cannot be served. Told once for each reason."""

    def model_unloaded(self, model: str, version: int) -> None:
        """A version was unloaded; sessions may still use it."""

    def model_dropped(self, model: str, version: int) -> None:
        """No session uses an unloaded version any more, and its engines have stopped."""

    def nothing_served(self, folder: str, num_versions: int) -> None:
        """Of the versions in the folder of models, by its whole path, none is served; num_versions: how many it has.
        Called once, when the server starts."""

    def repository_lost(self, reason: str) -> None:
        """The folder of models cannot be read. Called once, until it can be read again."""

    def repository_found(self) -> None:
        """It can be read again."""


class ApiObserver(Protocol):
    """Hears of gRPC calls. Called by the event loop."""

    def call_started(self, report: CallReport) -> None:
        """A call has come."""

    def trace_call(self, report: CallReport, metadata: Mapping[str, str]) -> CallTrace | None:
        """A call has come; its trace, if it is to be traced."""

    def call_ended(self, report: CallReport) -> None:
        """It has ended."""

    def response_written(self, seconds: float) -> None:
        """A response was handed to the transport, which took so long."""

    def request_failed(self, model: str, code: str, reason: str, count: int = 1) -> None:
        """A request inside a stream, or a call, was refused or failed; or so many sessions of a step batch were. model:
        empty when it is not known."""

    def handler_crashed(self, method: str, error: BaseException) -> None:
        """A bug: a handler raised what it must not. The caller has got INTERNAL and a fixed text."""

"""What the parts of the server report: protocols that metrics, traces and logs implement.

In `service/telemetry`, `observers.py` implements `SessionObserver`, `ApiObserver` and `StoreObserver`, `engines.py`
implements `EngineObserver` and `ModelObserver`, and `tracing.py` implements the traces.

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

    num_rows: sessions advanced; num_tokens: tokens that these sessions consumed; capacity: rows times time of the
    padded run; queue_s: seconds from submission to the start of the batch, one for each request that began in it;
    gather_s, run_s, commit_s: seconds to assemble the batch, to run the graph, and to decode and store its results.
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
    """Traces one request through the server. trace_id: 32 hexadecimal digits."""

    trace_id: str

    def batch_ran(self, report: BatchReport) -> None:
        """Called by the engine's thread just after a batch in which the request has rows."""

    def ended(self, request: str, model: str, version: int, num_tokens: int) -> None:
        """Called by the event loop when the request was answered in full."""


@dataclass(slots=True)
class CallReport:
    """One gRPC call. Its fields are complete when the call has ended. Event loop only.

    request_id: the caller's `x-request-id`, or one that the server made; method: such as
    `/carousel.v1.Inference/Stream`; peer: the connection of the call; is_known: whether the server has the method;
    principal: empty until it is known, and without a file of principals. models: names of the models that the call
    used. num_messages_in: requests read; num_messages_out: responses made; num_tokens_in: tokens or vectors fed or
    scored; num_tokens_out: tokens or vectors generated; num_failed: requests of a stream that were refused or failed.
    code: name of the gRPC status code; reason: the reason in `carousel.v1.Error`, if there is one; duration_s: seconds
    until the call ended; trace_id: empty when the call is not traced. others_session: `principal/id` of a session of
    another principal, if the call's admin principal named one.
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
        """The only model of the call; empty when it used none or several."""
        return next(iter(self.models)) if len(self.models) == 1 else ""

    def used(self, model: str) -> None:
        """Adds a model that the call used. An empty name is ignored."""
        if model:
            self.models.add(model)


CALL: ContextVar[CallReport] = ContextVar("call")


def current_call() -> CallReport:
    """Returns the call that is being handled, so that its handler can add to it. Outside of a call, returns a report
    that nothing reads."""
    return CALL.get(None) or CallReport("", "", "")


class CallTrace(Protocol):
    """Traces one gRPC call. Called by the event loop. trace_id: 32 hexadecimal digits."""

    trace_id: str

    def request(self) -> RequestTrace:
        """Called when a request of the call was read. Returns the trace of this request."""

    def ended(self, report: CallReport) -> None:
        """Called when the call has ended."""


CALL_TRACE: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
"""The trace of the call that is being handled; None when it is not traced."""


class EngineObserver(Protocol):
    """Receives reports of one model's engine. is_tracing: whether the engine must call `batch_traced`."""

    is_tracing: bool

    def batch_traced(self, tags: Sequence[Any], report: BatchReport) -> None:
        """Called by the engine's thread after `batch_ran`, if `is_tracing`. tags: those of the jobs in the batch."""

    def batch_ran(self, report: BatchReport) -> None:
        """Called by the engine's thread when a batch is done."""

    def batch_failed(self, kind: GraphKind, num_rows: int, error: BaseException) -> None:
        """Called by the engine's thread when a run of a graph raised `error`."""


class SessionObserver(Protocol):
    """Receives reports of sessions. Called by the event loop."""

    def session_opened(self, model: str, version: int, session_id: str) -> None:
        """Called when a session was opened."""

    def session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """Called when a session was closed. reason: the lower-case name of a `CloseReason`."""

    def stored_session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """Called when a session was closed that only the store had. reason: as for `session_closed`."""

    def session_resumed(self, model: str, version: int, session_id: str, source: str) -> None:
        """Called when a session was resumed. source: `memory` or `store`."""

    def session_detached(self, model: str, version: int, session_id: str) -> None:
        """Called when a session's stream has ended and the session waits to be resumed."""

    def session_spilled(self, model: str, version: int, session_id: str) -> None:
        """Called when a session's state was removed from memory to free its slot."""

    def session_unspilled(self, model: str, version: int, session_id: str) -> None:
        """Called when a spilled session was restored or closed."""

    def first_token(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """Called when a generation gave its first tokens. seconds: since its request."""

    def next_tokens(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """Called when a generation gave more tokens. seconds: since its previous token, divided by `num_tokens`."""

    def request_replayed(self, model: str, version: int, request: str) -> None:
        """Called when a feed, a generation or a step batch was sent again and is answered again."""

    def snapshot_made(self, num_bytes: int) -> None:
        """Called when a snapshot was made for a client."""

    def tokens_moved(self, model: str, version: int, request: str, num_tokens: int) -> None:
        """Called for a request that was cancelled or failed after it had moved its session by `num_tokens`."""

    def request_answered(
        self, model: str, version: int, request: str, seconds: float, num_tokens: int, *, trace: RequestTrace | None
    ) -> None:
        """Called when a request was answered in full. seconds: since it was read. num_tokens: without those that were
        reported earlier, such as a generation's."""


class StoreObserver(Protocol):
    """Receives reports of the store of sessions' records. Called by the event loop."""

    def records_written(self, sizes: Sequence[int], seconds: float) -> None:
        """Called when a batch of records was written. sizes: bytes of each record. seconds: how long it took."""

    def record_read(self, seconds: float) -> None:
        """Called when a record was looked up, found or not. seconds: how long it took."""

    def session_stored(self, seconds: float) -> None:
        """Called when a session's checkpoint was written. seconds: since the session had moved ahead of its record."""

    def operation_failed(self, operation: str) -> None:
        """Called when an operation of the store failed: `read`, `write`, `heartbeat` or `upkeep`."""

    def store_failed(self, error: BaseException) -> None:
        """Called when the store does not answer or cannot write. Not called again until it works again."""

    def store_recovered(self) -> None:
        """Called when the store works again."""

    def store_at_risk(self, reason: str) -> None:
        """Called when the store's settings put acknowledged records at risk. reason: empty when they no longer do."""

    def record_corrupt(self, session_id: str, error: BaseException) -> None:
        """Called when a record cannot be read, or cannot be encoded to be written. error: the reason."""


class ModelObserver(Protocol):
    """Receives reports of versions of models. Called by the event loop."""

    def model_loaded(self, model: str, version: int, variants: list[str]) -> None:
        """Called when a version is served."""

    def model_failed(self, model: str, version: int, reason: str) -> None:
        """Called when a version cannot be served, once for each reason."""

    def model_unloaded(self, model: str, version: int) -> None:
        """Called when a version was unloaded. Sessions may still use it."""

    def model_dropped(self, model: str, version: int) -> None:
        """Called when no session uses an unloaded version any more and its engines have stopped."""

    def nothing_served(self, folder: str, num_versions: int) -> None:
        """Called once, at the server's start, if no version is served. folder: absolute path of the folder of models.
        num_versions: the number of versions in it."""

    def repository_lost(self, reason: str) -> None:
        """Called when the folder of models cannot be read. Not called again until it can be read again."""

    def repository_found(self) -> None:
        """Called when the folder of models can be read again."""


class ApiObserver(Protocol):
    """Receives reports of gRPC calls. Called by the event loop."""

    def call_started(self, report: CallReport) -> None:
        """Called when a call starts."""

    def trace_call(self, report: CallReport, metadata: Mapping[str, str]) -> CallTrace | None:
        """Called when a call starts. Returns its trace; None when the call is not traced."""

    def call_ended(self, report: CallReport) -> None:
        """Called when a call has ended."""

    def response_written(self, seconds: float) -> None:
        """Called when a response was written. seconds: how long the transport took to accept it."""

    def request_failed(self, model: str, code: str, reason: str, count: int = 1) -> None:
        """Called when `count` requests of a stream, calls, or sessions of a step batch were refused or failed. model:
        empty when it is not known."""

    def handler_crashed(self, method: str, error: BaseException) -> None:
        """Called when a handler raised an unexpected error: a bug. The caller receives INTERNAL and a fixed text."""

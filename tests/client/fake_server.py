"""A fake gRPC server of all services that the client uses, around `FakeSession`. It has its own threads and port."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from carousel.v1 import error_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from carousel.v1 import inference_pb2 as pb

from .fake_session import VOCABULARY, FakeSession

MODEL = models_pb2.ModelInfo(
    model="toy",
    version=3,
    description="a toy",
    status=models_pb2.MODEL_STATUS_SERVING,
    has_encoder=True,
    source_vocabulary=["a"],
    target_vocabulary=VOCABULARY,
    max_source_length=9,
    max_tokens=100,
    variants=["fp32", "int8"],
    state_size_bytes=64,
    manifest_digest="ab",
)


UNUSABLE = error_pb2.Error(code=9, message="session is of toy version 3, which is not served", reason="SNAPSHOT_MODEL")


Event: TypeAlias = pb.StreamRequest | Callable[[], list[pb.StreamResponse]] | None
"""What a stream does next: answer a request, send what the function returns, or end."""


class FakeServer(inference_pb2_grpc.InferenceServicer):
    """A server whose faults the tests control: see `mute`, `unmute`, `evict`, `go_away`, `end_stream` and `kill`.

    poison: a token; a feed of this token ends its stream with status INTERNAL.
    failures: the errors of the next one-call requests, each with the number of tokens that a generation sends before
    it.
    events: what each watch receives; the call then fails with the next failure, or waits until it is cancelled.
    decodings: those of the one-call generations so far.
    num_streams: how many streams were opened.
    num_unusable: how many of the routes to a session lead to a server that cannot resume it.
    """

    def __init__(self) -> None:
        self.session = self._last = FakeSession()
        self.requests: queue.SimpleQueue[pb.StreamRequest] = queue.SimpleQueue()
        self.metadata: dict[str, str | bytes] = {}
        self.cancelled = threading.Event()
        self.stream_ended = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.poison = ""
        self.failures: list[tuple[int, error_pb2.Error]] = []
        self.decodings: list[pb.Decoding] = []
        self.steps: list[pb.StepRequest] = []
        self.events: list[pb.WatchResponse] = []
        self.num_streams = self.num_unusable = 0
        self._is_mute = False
        self._held: list[pb.StreamResponse] = []
        without_delay = [("grpc.http.tarpit", 0)]  # else gRPC waits 0.1 to 1 s before it refuses a message
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4), options=without_delay)
        inference_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        models_pb2_grpc.add_ModelsServicer_to_server(_Models(), self._server)
        # the client calls no other method
        sessions_pb2_grpc.add_SessionsServicer_to_server(_Sessions(), self._server)  # type: ignore[abstract]
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def mute(self) -> None:
        """Holds responses back from now on. Requests are still carried out."""
        self._is_mute = True

    def unmute(self) -> None:
        """Sends the responses that were held back, and later ones at once."""
        self._is_mute = False
        self._events.put(lambda: [])

    def evict(self) -> None:
        """Closes the session as idle, and notifies the client."""
        self._events.put(lambda: [self.session.evict()])

    def go_away(self) -> None:
        """Tells the client that the server shuts down."""
        self._events.put(lambda: [pb.StreamResponse(go_away=pb.GoAway())])

    def end_stream(self) -> None:
        """Ends the stream with status OK."""
        self._events.put(None)

    def kill(self) -> None:
        """Stops the server and breaks all connections."""
        stopped = self._server.stop(0)
        self._events.put(None)
        stopped.wait()

    def Stream(
        self, request_iterator: Iterator[pb.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse]:
        self.metadata = {key: value for key, value in context.invocation_metadata()}  # noqa: C416  # two-item tuples
        self.num_streams += 1
        if self.session.id:  # else its stream ended before its first request
            self._last = self.session
        self.session = FakeSession()
        events = self._events = queue.SimpleQueue()  # the next stream may come while this one runs
        reader = threading.Thread(target=self._read, args=(request_iterator, events), daemon=True)
        reader.start()
        try:
            while (event := events.get()) is not None:
                if not callable(event) and event.open.HasField("resume"):
                    self.session = self._last
                    if self._route() < self.num_unusable:
                        yield pb.StreamResponse(
                            request_id=event.request_id, session_id=event.session_id, error=UNUSABLE
                        )
                        continue
                if not callable(event) and self.poison and self.poison in event.feed.tokens:
                    context.abort(grpc.StatusCode.INTERNAL, "the handler crashed")
                answers = event() if callable(event) else self.session.handle(event)
                self._held += answers
                if not self._is_mute:
                    held, self._held = self._held, []
                    yield from held
        finally:
            self.stream_ended.set()

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        context.add_callback(self.cancelled.set)
        self.decodings.append(request.decoding)
        session = FakeSession()
        opening = pb.StreamRequest(request_id=1, open=pb.Open(model=request.model, source=request.source))
        (opened,) = session.handle(opening)
        if opened.HasField("error"):
            context.set_trailing_metadata((("carousel-error-bin", opened.error.SerializeToString()),))
            context.abort(grpc.StatusCode.NOT_FOUND, opened.error.message)
        if request.HasField("prompt"):
            feed = pb.Feed(tokens=request.prompt.tokens.names, position=0)
            session.handle(pb.StreamRequest(request_id=2, session_id=session.id, feed=feed))
        start = session.position
        generate = pb.Generate(position=start, decoding=request.decoding)
        answers = session.handle(pb.StreamRequest(request_id=3, session_id=session.id, generate=generate))
        num_tokens, failure = self.failures.pop(0) if self.failures else (len(answers), None)
        for answer in answers[:num_tokens]:
            yield pb.GenerateResponse(position=answer.position, generated=answer.generated, version=3)
        if failure is not None:
            _abort(context, failure)
        if session.is_generating:
            self.cancelled.wait()

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:
        """Answers as an older server does, which has no such method, or fails with the next of `failures`."""
        if self.failures:
            _abort(context, self.failures.pop(0)[1])
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        raise AssertionError("abort raises")

    def Step(self, request: pb.StepRequest, context: grpc.ServicerContext) -> pb.StepResponse:
        """Answers as if it had fed a session."""
        self.steps.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            _abort(context, self.failures.pop(0)[1])
        opened = pb.Opened(model="toy", version=3, variant="fp32", durability=pb.DURABILITY_STRICT)
        if not request.HasField("open"):
            opened.restored_from = pb.RESTORED_FROM_STORE
        elif request.open.HasField("outputs"):
            opened.output.tokens.add(id=2, text="A")
        response = pb.StepResponse(session_id=request.session_id, opened=opened, position=7, checkpoint_position=6)
        if request.HasField("feed"):
            response.fed.replayed = True
            response.fed.outputs.add(position=7).tokens.add(id=3, text="B")
        if request.close:
            response.closed.reason = pb.CLOSE_REASON_CLIENT
        return response

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        """Sends `events`, whichever session is watched."""
        self.metadata = dict(context.invocation_metadata())
        ended = threading.Event()
        context.add_callback(ended.set)
        context.add_callback(self.cancelled.set)
        yield from self.events
        if self.failures:
            _abort(context, self.failures.pop(0)[1])
        if self.events[-1].WhichOneof("event") != "closed":
            ended.wait()

    def _route(self) -> int:
        _, _, route = str(self.metadata.get("x-session-id", "")).partition("~")
        return int(route or 0)

    def _read(self, requests: Iterator[pb.StreamRequest], events: queue.SimpleQueue[Event]) -> None:
        try:
            for request in requests:
                self.requests.put(request)
                events.put(request)
        except Exception:  # grpc has no exception class for a broken call
            pass
        finally:
            events.put(None)


def _abort(context: grpc.ServicerContext, error: error_pb2.Error) -> None:
    context.set_trailing_metadata((("carousel-error-bin", error.SerializeToString()),))
    context.abort(next(code for code in grpc.StatusCode if code.value[0] == error.code), error.message)


class _Models(models_pb2_grpc.ModelsServicer):
    def List(self, request: models_pb2.ModelsListRequest, context: object) -> models_pb2.ModelsListResponse:
        broken = models_pb2.ModelInfo(model="wrong", version=1, status=models_pb2.MODEL_STATUS_FAILED, problem="torn")
        return models_pb2.ModelsListResponse(models=[MODEL, broken])

    def Get(self, request: models_pb2.ModelsGetRequest, context: grpc.ServicerContext) -> models_pb2.ModelsGetResponse:
        if request.model == "full":
            error = error_pb2.Error(code=8, message="full", reason="TOO_MANY_SESSIONS", retry_delay=Duration(seconds=2))
            context.set_trailing_metadata((("carousel-error-bin", error.SerializeToString()),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request.model != "toy":
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.model!r} is unknown")
        return models_pb2.ModelsGetResponse(model=MODEL)

    def Load(self, request: models_pb2.ModelsLoadRequest, context: object) -> models_pb2.ModelsLoadResponse:
        newer = models_pb2.ModelInfo(model=request.model or "all", version=request.version or 9, problem="torn")
        return models_pb2.ModelsLoadResponse(models=[newer])

    def Unload(
        self, request: models_pb2.ModelsUnloadRequest, context: grpc.ServicerContext
    ) -> models_pb2.ModelsUnloadResponse:
        if (request.model, request.version) != ("toy", 7):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.model!r} is unknown")
        return models_pb2.ModelsUnloadResponse(session_count=3)


class _Sessions(sessions_pb2_grpc.SessionsServicer):
    """Has the sessions s0, s1 and s2, and lists two on a page."""

    def List(
        self, request: sessions_pb2.SessionsListRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.SessionsListResponse:
        first = int(request.page_token or 0)
        infos = [_session_info(f"s{i}", request.model or "toy") for i in range(first, min(first + 2, 3))]
        token = str(first + 2) if first + 2 < 3 else ""
        return sessions_pb2.SessionsListResponse(sessions=infos, next_page_token=token, total_count=3)

    def Get(
        self, request: sessions_pb2.SessionsGetRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.SessionsGetResponse:
        header = dict(context.invocation_metadata())["x-session-id"]
        assert header == request.session_id
        return sessions_pb2.SessionsGetResponse(session=_session_info(request.session_id, "toy"))

    def Close(
        self, request: sessions_pb2.SessionsCloseRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.SessionsCloseResponse:
        return sessions_pb2.SessionsCloseResponse(position=4, reason=pb.CLOSE_REASON_CLIENT)


def _session_info(session_id: str, model: str) -> sessions_pb2.SessionInfo:
    return sessions_pb2.SessionInfo(
        session_id=session_id,
        model=model,
        version=3,
        position=4,
        state=sessions_pb2.SESSION_STATE_IDLE,
        open_time=Timestamp(seconds=10),
        last_used_time=Timestamp(seconds=20),
        variant="int8",
        durability=pb.DURABILITY_STRICT,
        checkpoint_position=3,
        attached=True,
        marks=[1, 2],
    )

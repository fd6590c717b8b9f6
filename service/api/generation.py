"""One `Inference.Generate` call: a session that lives as long as the call."""

from __future__ import annotations

from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api.outbox import Outbox
from service.api.part import Part
from service.engine.decoding import Decoding
from service.engine.jobs import GenerateJob, OutputKind, OutputSpec
from service.engine.results import Failed, Generated, Result
from service.errors import CarouselError, RequestCancelledError
from service.sessions.dispatcher import Dispatcher
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, Request, Served, Session


class Generation:
    """The state of one call. `outbox` gets its responses, and is closed after the last. Event loop only."""

    def __init__(self, registry: Registry, dispatcher: Dispatcher, outbox: Outbox[pb.GenerateResponse]) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._session: Session | None = None
        self._job: GenerateJob | None = None
        self._part: Part | None = None
        self._failure: CarouselError | None = None

    def start(self, served: Served, source: list[int] | None, prompt: list[int] | None, decoding: Decoding) -> None:
        """Opens the session and queues all of its work. Raises what the registry and the dispatcher raise."""
        self._session = self._registry.open(
            served, "", source, None, request_id=0, reply=self._on_step, on_closed=self._on_closed
        )
        if prompt is not None:
            nothing = OutputSpec(OutputKind.NONE)
            self._dispatcher.feed(self._session, None, prompt, nothing, request_id=0, reply=self._on_step)
        self._job = self._dispatcher.generate(
            self._session, None, decoding, request_id=0, reply=self._on_generated, field="decoding"
        )

    def raise_failure(self) -> None:
        """Raises the error that ended the generation, if one did."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Closes the session, whether or not it has done its work."""
        if self._session is not None:
            self._registry.close(self._session, CloseReason.CLIENT, notify=False)

    def _on_step(self, request: Request, result: Result) -> None:
        if isinstance(result, Failed):
            self._fail(result.error)

    def _on_generated(self, request: Request, result: Result) -> None:
        if not isinstance(result, Generated):
            if isinstance(result, Failed):
                self._fail(result.error)
            return
        part = self._part
        if part is None or part.is_taken:
            part = self._part = Part(request.session.served.bundle.target_vocabulary)
            self._outbox.put_later(partial(self._response, part), partial(self._granted, request.session, part))
        part.add(result)
        if result.finish_reason is not None:
            self._outbox.close()

    def _response(self, part: Part) -> pb.GenerateResponse:
        return pb.GenerateResponse(generated=part.take(), position=part.position)

    def _granted(self, session: Session, part: Part) -> None:
        if self._job is not None:
            self._dispatcher.granted(session, self._job, len(part))

    def _on_closed(self, session: Session, reason: CloseReason) -> None:
        """Somebody else has closed the session, which ends its work before its time."""
        self._fail(RequestCancelledError(f"the session was closed: {reason.value}", close_reason=reason.value))

    def _fail(self, error: CarouselError) -> None:
        if self._failure is None:
            self._failure = error
        self._outbox.close()

"""One `Inference.Step` call: opens, feeds and closes one session without a stream, each at most once. This is a visit:
see `sessions.visits`.

If the client leaves or the deadline passes, the session stays as it is: the engine finishes the jobs that it has, and
the result is kept for a retry. A call that closes its session, sent again, gets the answer that `sessions.tombstones`
keeps. Event loop only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.api import answers, consumed, convert, openings
from service.api.caller import Caller, Domain
from service.api.session_messages import close_reason
from service.background import awaited
from service.engine.jobs import Item
from service.engine.results import Failed, Fed, Result
from service.errors import (
    AnswerTooLargeError,
    CallerError,
    CarouselError,
    FeedUncertainError,
    InvalidFieldError,
    SessionIdInUseError,
    SessionNotFoundError,
    ShuttingDownError,
    StoreUnavailableError,
    quoted,
)
from service.observer import current_call
from service.sessions.answer_memory import StreamBudget
from service.sessions.persistence import OnDisconnect
from service.sessions.request import Request
from service.sessions.session import CloseReason, Session, no_stream
from service.sessions.tombstones import ClosingAnswer


class Step:
    """The state of one call. `answer` may be called once."""

    def __init__(self, domain: Domain, caller: Caller) -> None:
        self._domain = domain
        self._caller = caller
        self._sessions = domain.sessions
        self._visits = domain.sessions.visits
        self._budget = StreamBudget(domain.sessions.answer_budget)
        self._report = current_call()

    async def answer(self, message: pb.StepRequest) -> pb.StepResponse:
        """Runs the call when its turn in the session's visits comes. Raises a subclass of CarouselError if it is
        refused or fails."""
        has_open = message.HasField("open")
        if has_open and message.open.HasField("resume"):
            raise InvalidFieldError(
                "open.resume must not be set: leave out open to resume the session", field="open.resume"
            )
        if not message.session_id and not has_open:
            raise InvalidFieldError(
                "session_id is missing: set session_id to resume a session, or open to open one", field="session_id"
            )
        if has_open:
            openings.check(message.open)
            self._report.used(self._domain.hosting.known(message.open.model))
        try:
            if not message.session_id:
                return await self._open(message)
            key = self._caller.key(message.session_id)
            async with self._visits.turn(key):
                try:
                    session, is_here = await self._find(message, key)
                except SessionNotFoundError:
                    if (again := self._answer_again(message, key)) is not None:
                        return again
                    if not has_open:
                        raise
                    return await self._open(message)
                return await self._continue(message, session, is_here)
        finally:
            self._budget.close()

    def _answer_again(self, message: pb.StepRequest, key: str) -> pb.StepResponse | None:
        """Returns the answer to a retry of the call that closed the session. None: this is another call, or the answer
        is no longer kept."""
        if not message.close:
            return None
        data = self._sessions.registry.tombstones.answer_again(key, _digest(message))
        if data is None:
            return None
        response = pb.StepResponse.FromString(data)
        self._report.used(response.opened.model)
        if response.HasField("fed"):
            response.fed.replayed = True
            self._sessions.registry.observer.request_replayed(response.opened.model, response.opened.version, "feed")
        return response

    async def _continue(self, message: pb.StepRequest, session: Session, is_here: bool) -> pb.StepResponse:
        """Runs the call on a session that exists. is_here: whether the session was in memory."""
        try:
            # the response to a feed has the position
            position = 0 if message.HasField("feed") else await self._visits.position(session)
            opened = answers.resumed(0, session, position, is_here=is_here).opened
            return await self._use(message, session, pb.StepResponse(position=position, opened=opened))
        finally:
            self._visits.leave(session)

    async def _open(self, message: pb.StepRequest) -> pb.StepResponse:
        """Opens the session and runs the call on it. Closes the session again if the call fails because of the caller
        and the session did nothing."""
        request, result = self._request(None)
        new = openings.prepare(
            self._domain,
            self._caller,
            message.open,
            message.session_id,
            request=request,
            on_ended=no_stream,
            num_bytes=message.open.ByteSize(),
            on_disconnect=OnDisconnect.HOLD,
        )
        session = new.session
        self._visits.begin(session)
        try:
            self._sessions.opening.begin(new)
            opened = await _opened(request, _succeeded(await result), new.source)
            self._report.num_tokens_in += len(new.source or ())
            return await self._use(message, session, pb.StepResponse(opened=opened))
        except (CallerError, AnswerTooLargeError):
            if session.is_live and session.is_detached and not (session.position or session.num_unanswered):
                self._sessions.registry.close(session, CloseReason.FAILED, notify=False)
            raise
        finally:
            self._visits.leave(session)

    async def _find(self, message: pb.StepRequest, key: str) -> tuple[Session, bool]:
        """Returns the session that exists, and whether it was in memory.

        key: the internal id of the session. Raises SessionIdInUseError for a session unlike the one that the call would
        open, and what `Visits.find` raises.
        """
        session, is_here = await self._visits.find(key, self._caller.principal.max_sessions)
        if message.HasField("open"):
            try:
                _check_same(session, message.open)
            except CarouselError:
                self._visits.leave(session)
                raise
        return session, is_here

    async def _use(self, message: pb.StepRequest, session: Session, response: pb.StepResponse) -> pb.StepResponse:
        """Feeds and closes the session, as far as the call asks for it. Returns `response` with the results. If it is
        too large, the source, the ports and the output of the opening are left out."""
        response.session_id = session.name
        self._report.used(session.served.model)
        if message.HasField("feed"):
            fed = await self._feed(message.feed, session)
            response.position = fed.position
            response.fed.CopyFrom(fed.fed)
        checkpoint = session.persistence.checkpoint_position
        if checkpoint is not None:
            response.checkpoint_position = checkpoint
        is_closing = message.close or session.policy.on_disconnect is OnDisconnect.FREE
        reason = CloseReason.CLIENT if message.close else CloseReason.DISCONNECT
        if is_closing:
            response.closed.reason = close_reason(reason)
        if response.ByteSize() > self._sessions.limits.max_answer_bytes:
            opened = response.opened
            for field in (opened.source, opened.inputs, opened.outputs):
                del field[:]
            opened.ClearField("output")
        if is_closing:
            await self._visits.close(session, reason, _closing_answer(message, response))
        return response

    async def _feed(self, message: pb.Feed, session: Session) -> pb.StreamResponse:
        """Feeds the session. Returns the response that a stream would send."""
        request, result = self._request(session)

        def act() -> None:
            self._visits.check_free(session)  # a stream may have resumed it while it had no slot
            bundle, requests = session.served.bundle, self._sessions.requests
            items = consumed.feed_items(message, bundle, requests.limits.max_feed_tokens)
            outputs = convert.output_spec(message.outputs, bundle, field="feed.outputs")
            position = message.position if message.HasField("position") else None
            requests.feed(request, position, items, outputs, has_mark=message.mark)

        await self._sessions.spill.act(session, act)
        try:
            fed = _succeeded(await result)
        except (StoreUnavailableError, ShuttingDownError) as error:
            if message.HasField("position"):
                raise
            # not UNAVAILABLE: proxies and clients may retry such a call automatically
            raise FeedUncertainError(
                f"{error.message}. The feed has no position: read the session's position before you retry",
                session_id=session.name,
            ) from error
        assert isinstance(fed, Fed)  # noqa: S101  # a feed was asked for
        self._report.num_tokens_in += request.num_tokens
        if request.answer_bytes or request.replayed:
            return await answers.large_fed(request, fed)
        return answers.fed(request, fed)

    def _request(self, session: Session | None) -> tuple[Request, asyncio.Future[Result]]:
        """Returns a request of the session, and a future of its result."""
        result, give = awaited()
        return Request(session, 0, lambda _, result: give(result), time.monotonic(), self._budget), result


async def _opened(request: Request, result: Result, source: Sequence[Item] | None) -> pb.Opened:
    if request.answer_bytes and isinstance(result, Fed):
        return (await answers.large_opened(request, result, source)).opened
    return answers.opened(request, result, source).opened


def _succeeded(result: Result) -> Result:
    """Returns a result. Raises the error of a failed one."""
    if isinstance(result, Failed):
        raise result.error
    return result


def _digest(message: pb.StepRequest) -> bytes:
    """Returns bytes that are equal for the same request alone."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def _closing_answer(message: pb.StepRequest, response: pb.StepResponse) -> ClosingAnswer | None:
    """Returns the answer of a call that closes its session, as it is kept for retries. None: the call is not safe to
    retry."""
    if not message.close or (message.HasField("feed") and not message.feed.HasField("position")):
        return None
    return ClosingAnswer(_digest(message), response.SerializeToString())


def _check_same(session: Session, message: pb.Open) -> None:
    """Raises SessionIdInUseError if a session has another model, version or variant than the call would open."""
    served = session.served
    asked = (message.model, message.version or served.version, message.variant or served.variant)
    if asked != (served.model, served.version, served.variant):
        raise SessionIdInUseError(
            f"session_id = {session.name!r} is in use by a session of {served.model} version {served.version}"
            f" ({served.variant}), but open asks for {quoted(message.model)} version {message.version or 'any'}"
            f" ({quoted(message.variant) if message.variant else 'any'})",
            field="session_id",
            session_id=session.name,
        )

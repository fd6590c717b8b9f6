"""One request of one session, and the function that receives its answers.

Knows no clock and no I/O. A new `Request` reads the trace of its call, and reports a `reply` that raises to the event
loop.
"""

from __future__ import annotations

from collections.abc import Callable

from service.engine.last_tokens import LastTokens
from service.engine.results import Failed, Generated, Result
from service.errors import EngineError, guarded, report
from service.observer import CALL_TRACE
from service.sessions.answer_memory import SMALL_ANSWER, StreamBudget
from service.sessions.session import Session


class Request:
    """One request of one session, from its arrival to its last answer. Event loop only.

    `deliver` passes each answer to reply(request, result). A generation has many answers, and the last one carries its
    finish reason; every other request has one answer.

    began_s: arrival, in monotonic seconds. last_s: when its last tokens came, in monotonic seconds. num_tokens: tokens
    that it has fed or generated so far, without those that a resumed generation made before it. is_ended: whether the
    last answer was delivered. before: for a generation that continues an earlier one, the tokens before the first one
    delivered, if the model keeps them. granted: set for a generation; the caller calls it with the number of tokens
    written to the client and the position after them. retries: for a feed, its retries that arrived while it was in
    flight. trace: None when the call is not traced. budget: the memory budget of the stream that the answer is written
    to, None without a stream. answer_bytes: bytes of that budget that this request holds.
    """

    __slots__ = (
        "answer_bytes",
        "before",
        "began_s",
        "budget",
        "granted",
        "is_ended",
        "last_s",
        "num_tokens",
        "replayed",
        "reply",
        "request_id",
        "retries",
        "session",
        "trace",
    )

    def __init__(
        self,
        session: Session | None,
        request_id: int,
        reply: Reply,
        began_s: float,
        budget: StreamBudget | None = None,
    ) -> None:
        self.session: Session = session  # type: ignore[assignment]  # set before anything is delivered
        self.request_id = request_id
        self.reply = reply
        self.began_s = self.last_s = began_s
        self.num_tokens = 0
        self.budget = budget
        self.answer_bytes = 0
        self.is_ended = False
        self.replayed = False
        self.before: LastTokens | None = None
        self.retries: list[Request] | None = None
        self.granted: Callable[[int, int], None] | None = None
        call = CALL_TRACE.get()
        self.trace = None if call is None else call.request()

    def reserve(self, num_bytes: int) -> None:
        """Takes `num_bytes`, the largest possible size of the answer, from the stream's budget. Small answers are not
        counted. Raises QueueFullError."""
        if num_bytes > SMALL_ANSWER and self.budget is not None:
            self.budget.reserve(num_bytes)
            self.answer_bytes += num_bytes

    def release(self) -> None:
        """Returns the reserved bytes to the budget: the answer was written, or no large answer will come."""
        num_bytes, self.answer_bytes = self.answer_bytes, 0
        if num_bytes and self.budget is not None:
            self.budget.release(num_bytes)

    def deliver(self, result: Result) -> None:
        """Passes a result to `reply`. When `reply` raises, delivers a failure instead. Results after the last answer
        are dropped."""
        if not self.is_ended:
            if type(result) is Failed and "close_reason" in result.error.facts:
                result.error.facts.setdefault("position", result.position)
            self.is_ended = not isinstance(result, Generated) or result.finish_reason is not None
            try:
                self.reply(self, result)
            except Exception as error:  # a bug in one answer must not leave the request unanswered
                report(error)
                self.is_ended = True
                failure = EngineError("the response could not be made: see the server's log")
                guarded(self.reply, self, Failed(result.position, failure))


Reply = Callable[[Request, Result], None]

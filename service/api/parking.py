"""Requests of a stream that wait until their session is there: it is being opened, or brought back.

They keep their order. Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable

from carousel.v1 import inference_pb2 as pb
from service.errors import CarouselError, QueueFullError
from service.sessions.session import Session

NOBODY = ""
"""Where requests wait that name no session: frames, and those that come before the stream's only session has an id."""


class AsleepError(Exception):
    """A request cannot be carried out before these sessions are awake."""

    def __init__(self, sessions: list[Session]) -> None:
        super().__init__(f"{len(sessions)} sessions are asleep")
        self.sessions = sessions


class Parking:
    """Where requests wait, by session id. handle: takes one in; refuse: answers one with an error; limit: of one
    session."""

    def __init__(
        self,
        handle: Callable[[pb.StreamRequest], None],
        refuse: Callable[[pb.StreamRequest, CarouselError], None],
        limit: int,
    ) -> None:
        self._handle = handle
        self._refuse = refuse
        self._limit = limit
        self._waiting: dict[str, list[pb.StreamRequest]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def reserve(self, session_id: str) -> None:
        """Requests of this session wait from here on."""
        self._waiting.setdefault(session_id, [])

    def takes(self, request: pb.StreamRequest) -> bool:
        """Whether a request has to wait; then it does. Refuses it when too many do."""
        waiting = self._waiting.get(request.session_id)
        if waiting is None:
            return False
        if len(waiting) >= self._limit:
            self._refuse(
                request,
                QueueFullError(
                    f"{len(waiting)} requests wait for session {request.session_id!r} already, the most that may",
                    retry_delay_s=0.1,
                    max_in_flight=self._limit,
                ),
            )
        else:
            waiting.append(request)
        return True

    def park(self, request: pb.StreamRequest) -> None:
        """Has a request wait, as the first of its session."""
        self._waiting.setdefault(request.session_id, []).insert(0, request)

    def release(self, session_id: str, error: CarouselError | None) -> None:
        """A session is there: what waits for it is taken in, or refused with an error."""
        for request in self._waiting.pop(session_id, ()):
            if error is not None:
                self._refuse(request, error)
            elif not self.takes(request):
                self._handle(request)

"""What a server allows to its sessions: their policies, their number and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import InvalidFieldError
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """What a server grants. max_durability: the highest durability. hold_s, keep_s: default durations. max_hold_s,
    max_keep_s: longest durations."""

    max_durability: Durability = Durability.STRICT
    hold_s: float = 60.0
    max_hold_s: float = 3600.0
    keep_s: float = 86_400.0
    max_keep_s: float = 2_592_000.0

    def agree(
        self,
        durability: Durability | None,
        on_disconnect: OnDisconnect,
        duration_s: float | None,
        *,
        is_unattended: bool,
    ) -> SessionPolicy:
        """Returns the policy for a client's request. None: the client did not set the value. Raises InvalidFieldError
        when the request exceeds what this server grants."""
        if durability is None:
            durability = Durability.NONE if on_disconnect is OnDisconnect.FREE else Durability.CHECKPOINT
            durability = min(durability, self.max_durability)
        if durability > self.max_durability:
            raise InvalidFieldError(
                f"open.durability = DURABILITY_{durability.name} must be at most DURABILITY_{self.max_durability.name},"
                " the limit of this server (max_durability)",
                field="open.durability",
            )
        field = "open.on_disconnect.duration"
        if on_disconnect is OnDisconnect.FREE:
            if duration_s is not None:
                raise InvalidFieldError(
                    f"{field} can be set only with DISCONNECT_ACTION_HOLD or DISCONNECT_ACTION_KEEP", field=field
                )
            return SessionPolicy(durability, on_disconnect, 0.0, is_unattended)
        is_hold = on_disconnect is OnDisconnect.HOLD
        longest = self.max_hold_s if is_hold else self.max_keep_s
        if duration_s is None:
            duration_s = min(longest, self.hold_s if is_hold else self.keep_s)
        if not 0.0 < duration_s <= longest:
            setting = "max_hold_s" if is_hold else "max_keep_s"
            raise InvalidFieldError(
                f"{field} = {duration_s:g} s must be above 0 and at most {longest:g} s ({setting})", field=field
            )
        return SessionPolicy(durability, on_disconnect, duration_s, is_unattended)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The limits of a server. max_sessions: open sessions, of all models together. idle_timeout_s: seconds without a
    request after which a session is closed. max_age_s: seconds from the opening of a session until it is closed, even
    when it is in use; 0 means no limit. max_feed_tokens: tokens in one feed. max_generate_tokens: tokens in one
    generation. max_in_flight: unanswered requests of one session. max_forks: beams of one search, or targets of one
    score. generation_window: tokens generated ahead of what was written to the client. max_answer_bytes: bytes of one
    answer. num_tombstones: closed sessions that are remembered. replay_tokens: tokens of one generation kept for
    retries. max_marks: marks of one session. hold_s: seconds for which a copy of a session waits to be resumed when its
    policy has no duration. max_deferred_bytes: bytes of all requests that wait for sessions to be opened or restored.
    max_replay_bytes: bytes of all answers kept for retries, the same again for answers that the store did not take, and
    the same again for answers of calls that closed their session.
    max_unwritten_bytes: bytes of large requests in flight and of answers not yet written, and the same again for events
    that wait for watchers."""

    max_sessions: int = 10_000
    idle_timeout_s: float = 300.0
    max_age_s: float = 0.0
    max_feed_tokens: int = 131_072
    max_generate_tokens: int = 65_536
    max_in_flight: int = 64
    max_forks: int = 64
    generation_window: int = 256
    max_answer_bytes: int = 4 * 1024 * 1024
    num_tombstones: int = 10_000
    replay_tokens: int = 16_384
    max_marks: int = 8
    hold_s: float = PolicyLimits().hold_s
    max_deferred_bytes: int = 128 * 1024 * 1024
    max_replay_bytes: int = 32 * 1024 * 1024
    max_unwritten_bytes: int = 256 * 1024 * 1024

    @property
    def mark_s(self) -> float:
        """How much later than `last_used_s` a session may have been used, in seconds. `last_used_s` is not updated at
        every step, because an update costs as much as a step."""
        return self.idle_timeout_s / 64

"""What a server allows its sessions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """max_sessions: live at once, of all models; idle_timeout_s: without a request, until a session is closed;
    max_feed_tokens: in one feed; max_generate_tokens: in one generation; max_in_flight: requests of one session not
    yet answered; max_forks: beams of one search, targets of one score; generation_window: tokens generated ahead of
    what has been written to the client; max_answer_bytes: of one answer; num_tombstones: closed sessions remembered;
    replay_tokens: of one generation, kept for retries; max_marks: of one session;
    max_deferred_bytes: of all requests that wait for sessions to be opened or restored; max_replay_bytes: of all
    answers to feeds that are kept for retries."""

    max_sessions: int = 10_000
    idle_timeout_s: float = 300.0
    max_feed_tokens: int = 131_072
    max_generate_tokens: int = 65_536
    max_in_flight: int = 64
    max_forks: int = 64
    generation_window: int = 256
    max_answer_bytes: int = 4 * 1024 * 1024
    num_tombstones: int = 10_000
    replay_tokens: int = 16_384
    max_marks: int = 8
    max_deferred_bytes: int = 128 * 1024 * 1024
    max_replay_bytes: int = 32 * 1024 * 1024

"""The access log: one line for each call, when it has ended. `log_level` does not affect it."""

from __future__ import annotations

import logging
from typing import Literal

import structlog

from service.observer import CallReport

AccessLevel = Literal["off", "errors", "all"]
_log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))


class AccessLog:
    """Writes the access log. level: `errors` selects calls that did not end with OK, and streams in which a request was
    refused or failed."""

    def __init__(self, level: AccessLevel) -> None:
        self._is_on = level != "off"
        self._has_all = level == "all"

    def call_ended(self, report: CallReport) -> None:
        """Writes the line of a call, if the level selects it. Leaves out an empty reason, number of failures or trace
        id."""
        if not self._is_on or not (self._has_all or report.code != "OK" or report.num_failed):
            return
        fields = {
            "reason": report.reason,
            "requests_failed": report.num_failed,
            "trace_id": report.trace_id,
        }
        _log.info(
            "call.ended",
            request_id=report.request_id,
            peer=report.peer,
            principal=report.principal,
            method=report.method,
            model=",".join(sorted(report.models)),
            code=report.code,
            duration_s=round(report.duration_s, 6),
            messages_in=report.num_messages_in,
            messages_out=report.num_messages_out,
            tokens_in=report.num_tokens_in,
            tokens_out=report.num_tokens_out,
            **{name: value for name, value in fields.items() if value},
        )

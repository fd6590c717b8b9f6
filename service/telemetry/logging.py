"""Log lines: event names with fields, never payloads; text for people or JSON for programs, on standard error.

Errors that no code of ours handles become log lines of the same form: errors in threads, in destructors, in callbacks
and tasks of an event loop, and messages that libraries log.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import structlog

from service.redaction import without_passwords

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

log = structlog.get_logger()


def configure(log_format: str, log_level: str) -> None:
    """Sets up the logging of the process. log_format: `text` or `json`."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # no values of variables: they may be user data, and formatting them blocks the event loop for seconds
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    exceptions = [structlog.processors.format_exc_info] if log_format == "json" else []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
            _without_passwords,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_crashed
    root = logging.getLogger()
    root.handlers = [_Forwarder(logging.WARNING)]


def _without_passwords(_: Any, __: str, line: Any) -> str:
    """Removes passwords from a finished line, also those in a library's message or an exception."""
    return without_passwords(line)


def loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an error that nothing awaits. For `loop.set_exception_handler`."""
    source = context.get("task") or context.get("future") or context.get("handle") or context.get("transport")
    log.error(
        "loop.exception",
        message=context.get("message", ""),
        source="" if source is None else repr(source)[:200],
        exc_info=context.get("exception"),
    )


def _unraisable(unraisable: UnraisableHookArgs) -> None:
    message = unraisable.err_msg or "exception ignored"
    log.error(
        "unraisable.exception", message=f"{message} in {unraisable.object!r}"[:300], exc_info=unraisable.exc_value
    )


def _thread_crashed(arguments: threading.ExceptHookArgs) -> None:
    if not issubclass(arguments.exc_type, SystemExit):
        name = "" if arguments.thread is None else arguments.thread.name
        log.error("thread.crashed", thread=name, exc_info=arguments.exc_value)


class _Forwarder(logging.Handler):
    """Turns records of the standard library's `logging` into our log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs a record as `library.message`."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        error = record.exc_info[1] if record.exc_info else None
        try:
            message = record.getMessage()[:2000]
        except (TypeError, ValueError):  # its arguments do not fit its format string
            message = str(record.msg)[:2000]
        getattr(log, level)("library.message", logger=record.name, message=message, exc_info=error)

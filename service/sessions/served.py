"""What serves a session: a bundle, and the engine that runs it."""

from __future__ import annotations

from service.engine.engine import Engine
from service.engine.jobs import OutputSpec
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT
from service.sessions.answer_memory import SMALL_ANSWER
from service.sessions.checks import check_outputs, trace_size
from service.sessions.kinds import check_kind

_MAX_CHECKED = 256
"""Kinds of outputs of one model whose checks are remembered."""


class Served:
    """A bundle and the engine that runs it, by one of its variants. model, version: the bundle's. answer_bytes: the
    most that one output takes in an answer, by what is asked, as far as it was checked already: see `check_outputs`.
    item_bytes: about what an item of a feed takes in memory."""

    __slots__ = ("answer_bytes", "bundle", "engine", "item_bytes", "model", "variant", "version")

    def __init__(self, bundle: Bundle, engine: Engine, variant: str = BASE_VARIANT) -> None:
        self.bundle = bundle
        self.engine = engine
        self.variant = variant
        self.model = bundle.model
        self.version = bundle.version
        self.answer_bytes: dict[OutputSpec, int] = {}
        self.item_bytes = 40 + 4 * bundle.manifest.step.feature_size  # a reference and an object

    def check_outputs(self, outputs: OutputSpec, num_tokens: int, max_bytes: int) -> int:
        """The most bytes that the outputs of a feed take. Raises InvalidFieldError and its kin, and AnswerTooLargeError
        for more than `max_bytes`; else notes what an output takes."""
        manifest = self.bundle.manifest
        check_kind(manifest, self.variant, outputs, field="feed.outputs")
        each = check_outputs(
            outputs,
            num_tokens=num_tokens,
            vocabulary_size=manifest.output_size,
            max_bytes=max_bytes,
            field="feed.outputs",
            trace_size=trace_size(manifest) if outputs.has_trace else 0,
            token_bytes=self.bundle.max_token_bytes,
        )
        if (outputs.every_position or each <= SMALL_ANSWER) and len(self.answer_bytes) < _MAX_CHECKED:
            self.answer_bytes[outputs] = each if outputs.every_position else 0
        return each * (num_tokens if outputs.every_position else 1)

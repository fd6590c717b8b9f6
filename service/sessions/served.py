"""A bundle together with the engine that runs it."""

from __future__ import annotations

from service.engine.engine import Engine
from service.engine.jobs import OutputSpec
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT
from service.sessions.answer_memory import SMALL_ANSWER
from service.sessions.checks import check_outputs, trace_size
from service.sessions.kinds import check_kind, default_outputs

_MAX_CHECKED = 256
"""The most kinds of outputs of one model whose checks are cached."""


class Served:
    """A bundle and the engine that runs one of its variants. model, version: those of the bundle. answer_bytes: a cache
    for `check_outputs`: by the outputs of a feed, the most bytes for each of its tokens. item_bytes: about the bytes of
    an item of a feed in memory. default_outputs: see `kinds`; stored, because most feeds ask for no outputs."""

    __slots__ = ("answer_bytes", "bundle", "default_outputs", "engine", "item_bytes", "model", "variant", "version")

    def __init__(self, bundle: Bundle, engine: Engine, variant: str = BASE_VARIANT) -> None:
        self.bundle = bundle
        self.engine = engine
        self.variant = variant
        self.model = bundle.model
        self.version = bundle.version
        self.default_outputs = default_outputs(bundle.manifest)
        self.answer_bytes: dict[OutputSpec, int] = {}
        self.item_bytes = 40 + 4 * bundle.manifest.step.feature_size  # a reference and an object

    def check_outputs(self, outputs: OutputSpec, num_tokens: int, max_bytes: int) -> int:
        """Returns the most bytes of the outputs of a feed. Raises InvalidFieldError and its subclasses, and
        AnswerTooLargeError for more than `max_bytes`. Caches valid outputs in `answer_bytes`."""
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

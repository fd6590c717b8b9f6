"""Which kinds of outputs a model has, and which it gives by default. Pure."""

from __future__ import annotations

from collections.abc import Set

from service.engine.jobs import VALUES, OutputKind, OutputSpec
from service.errors import InvalidFieldError
from service.repository.manifest import BASE_VARIANT, Manifest

_NEXT_TOKEN = OutputSpec()
_EMITTED = OutputSpec(OutputKind.EMITTED, every_position=True)
_OF_LOGITS = frozenset((OutputKind.NEXT_TOKEN, OutputKind.TOP_K, OutputKind.LOGITS))
_OF_VALUES = frozenset((OutputKind.VALUES,))
_OF_TRANSDUCERS = frozenset((OutputKind.EMITTED,))


def default_outputs(manifest: Manifest) -> OutputSpec:
    """Returns the outputs of a request that does not ask for any."""
    if manifest.target_vocabulary is None:
        return VALUES
    return _NEXT_TOKEN if manifest.step.emits is None else _EMITTED


def check_kind(manifest: Manifest, variant: str, outputs: OutputSpec, *, field: str) -> None:
    """Raises InvalidFieldError for outputs that the model does not have."""
    if outputs.kind is not OutputKind.NONE:
        kinds, what = _kinds_of(manifest)
        if outputs.kind not in kinds:
            raise InvalidFieldError(
                f"{field}.kind = OUTPUT_KIND_{outputs.kind.name} is not supported by {manifest.model}, which {what}",
                field=f"{field}.kind",
            )
    if outputs.has_trace and (manifest.trace is None or variant != BASE_VARIANT):
        why = f"{manifest.model} has no trace" if manifest.trace is None else f"variant {variant} has no trace"
        raise InvalidFieldError(f"{field}.trace must not be set: {why}", field=f"{field}.trace")


def _kinds_of(manifest: Manifest) -> tuple[Set[OutputKind], str]:
    """Returns the kinds of outputs except NONE, and a phrase that says what the model returns."""
    if manifest.step.emits is not None:
        return _OF_TRANSDUCERS, "emits tokens"
    if manifest.target_vocabulary is None:
        return _OF_VALUES, "outputs values"
    return _OF_LOGITS, "outputs logits over a vocabulary"

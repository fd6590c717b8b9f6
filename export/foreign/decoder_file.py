"""Reads a translator's decoder: finds the inputs that come from the encoder, and makes a one-step graph of the rest.

The encoder's outputs for one source become constants of that graph, so that it can be read like any other file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from export.errors import ExportError
from export.foreign.axes import Hints, Tensor, batch_name, declared, listed
from export.foreign.binding import bind
from export.foreign.decoder_steps import LONG, SHORT, DecoderFile, Steps
from export.foreign.encoder_file import EncoderFile
from export.foreign.encoder_inputs import MIN_OPSET, WHOLE, constants_of
from export.foreign.links import Links, Placed, Session
from export.foreign.loading import check_opset, load
from export.foreign.masks import Mask, find_form
from export.foreign.matching import DecoderInput, match
from export.foreign.over_source import TOKENS, fixed_source, is_of_row, is_over_source, place_of
from export.foreign.pairing import differ_in_time, pair_states
from export.foreign.wiring import Wiring, may_be
from export.surgery import opset_of

_LENGTHS = re.compile(r"len", re.IGNORECASE)
_LOGITS = re.compile(r"logit|prob|pred|score|out", re.IGNORECASE)


def read_decoder(
    file: Path, encoder: EncoderFile, hints: Hints, links: Links, vocabulary_size: int | None
) -> DecoderFile:
    """Returns the decoder as it was read. vocabulary_size: of the logits, if known. Raises ExportError that names the
    flags that help."""
    model = load(file)
    check_opset(file.name, opset_of(model), MIN_OPSET)
    inputs, outputs = declared(model, hints)
    constants = {
        name: value
        for name, value in hints.constants.items()
        if name in inputs and (name not in encoder.inputs or all(isinstance(axis, int) for axis in inputs[name].shape))
    }
    own = replace(hints, inputs=[name for name in hints.inputs if name in inputs], constants=constants)
    found = DecoderFile(file, model, model, own, inputs)
    for flag, names in (("--context", links.contexts), ("--initial", links.initial)):
        if unknown := [name for name in names if name not in inputs]:
            raise ExportError(f"{flag} names {unknown[0]}, which {file.name} does not have. It has: {listed(inputs)}")
    left = {name: one for name, one in inputs.items() if name not in (*own.other_roles, *own.states)}
    found.lengths = _lengths(left, links, own)
    if found.lengths is not None:
        del left[found.lengths.name]
    whole = [name for name, one in left.items() if one.dtype in WHOLE and name not in links.masks]
    if len(whole) == 1 and not found.hints.inputs:
        found.hints = replace(found.hints, inputs=whole)
    _find_contexts(found, encoder, left, outputs, links)
    _find_masks(found, encoder, left, links)
    token = found.token = _token(found, left)
    session = Session(model, file.name)
    step = Steps(found, encoder, session, constants_of(inputs, own))
    for place, mask in enumerate(found.masks):
        name = mask.placed.tensor.name
        found.masks[place] = find_form(mask.placed, links.masks.get(name), partial(step.padded, name))
        found.notes.append(f"mask {name} of {file.name}: {found.masks[place].form}, made of the source's length")
    _find_states(found, encoder, left, outputs, links)
    found.hints = replace(found.hints, outputs=_outputs(found, step, outputs, vocabulary_size))
    found.bound = bind(model, step.given(), list(step.rows()), token, _rows(token, own))
    return found


def _rows(token: Tensor | None, hints: Hints) -> int | None:
    """Returns the token's batch axis; None if the number of rows is fixed."""
    if token is None:
        return None
    name = batch_name(token, {}, hints)
    return token.shape.index(name) if isinstance(name, str) and name in token.shape else None


def _lengths(left: Mapping[str, Tensor], links: Links, hints: Hints) -> Tensor | None:
    """Returns the input with the source's length: a flag names it, or it has one integer a row and a fitting name."""
    for name, one in left.items():
        is_likely = one.dtype in WHOLE and len(one.shape) <= 1 and _LENGTHS.search(name) and name not in hints.inputs
        if name in links.lengths or (not links.lengths and is_likely):
            return one
    return None


def _find_contexts(
    found: DecoderFile,
    encoder: EncoderFile,
    left: dict[str, Tensor],
    outputs: Mapping[str, Tensor],
    links: Links,
) -> None:
    """Finds the inputs over the source that are outputs of the encoder."""
    offers = {name: one for name, one in encoder.outputs.items() if one.source is not None}
    others = (*found.hints.inputs, *links.masks)
    wanted = {
        name: one
        for name, one in left.items()
        if links.contexts.get(name) in offers or (is_over_source(one, left) and name not in others)
    }
    for name, one in wanted.items():
        grown = next((other for other in outputs if differ_in_time(name, other)), None)
        if grown is not None and name not in links.contexts and is_over_source(outputs[grown], left):
            raise ExportError(
                f"{found.file.name}: the state {one} -> {grown} has the source's length; such states are not supported:"
                " export the decoder without it"
            )

    def fits(tensor: Tensor, offer: Placed) -> bool:
        return tensor.dtype == offer.tensor.dtype and place_of(tensor, offer, left) is not None

    growing = {name: one for name, one in links.contexts.items() if name in wanted}
    matched = match("--context", [DecoderInput(one, may_share=True) for one in wanted.values()], offers, growing, fits)
    for name, output in matched.items():
        placed = place_of(left[name], offers[output], left)
        assert placed is not None  # noqa: S101  # `fits` has checked it
        found.contexts[name], found.places[name] = output, placed
        found.notes.append(f"context {name} = {output} of the encoder")
        del left[name]
    for one in left.values():
        if any(may_be(one, output) for output in outputs.values()):
            continue  # a state, which may have as many layers as a source has places
        for offer in offers.values():
            at = fixed_source(one, offer)
            if at is not None:
                raise ExportError(
                    f"{found.file.name}: {one} is fixed to sources of {at} tokens: export the decoder with a dynamic"
                    " source axis (dynamic_axes or dynamic_shapes of torch.onnx.export)"
                )


def _find_masks(found: DecoderFile, encoder: EncoderFile, left: dict[str, Tensor], links: Links) -> None:
    """Finds the masks: inputs over the source, with one number for each place, that the encoder does not return."""
    for name, one in list(left.items()):
        if name not in links.masks and (not is_over_source(one, left) or name in found.hints.inputs):
            continue
        scalar = Placed(one, encoder.source.rows, encoder.source.source, ())
        placed = place_of(one, scalar, left)
        if placed is None:
            raise ExportError(
                f"{found.file.name}: no output of the encoder fits {one}: name it with --context {name}=OUTPUT, or give"
                f" the input's role with --input {name} or --state {name}=OUTPUT"
            )
        found.masks.append(Mask(placed, "real"))
        del left[name]


def _token(found: DecoderFile, left: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the input that is a step's token; None if a step reads numbers."""
    whole = [one for one in left.values() if one.dtype in WHOLE]
    from_flags = [one for one in whole if one.name in found.hints.inputs]
    named = [one for one in whole if TOKENS.search(one.name)]
    choices = from_flags or (named if len(whole) > 1 else whole)
    sizes = [axis for one in choices for axis in one.shape if isinstance(axis, int) and axis > 1]
    if sizes:
        raise ExportError(
            f"{found.file.name}: {choices[0]} has a fixed number of {sizes[0]} rows: export the decoder with a dynamic"
            " batch axis, or with one row"
        )
    if len(choices) > 1 or (whole and not choices):
        flags = " or ".join(f"--input {one.name}" for one in choices or whole)
        raise ExportError(f"{found.file.name}: which input is the token? Use {flags}")
    if choices and not found.hints.inputs:
        found.hints = replace(found.hints, inputs=[choices[0].name])
    return choices[0] if choices else next((left[name] for name in found.hints.inputs if name in left), None)


def _find_states(
    found: DecoderFile,
    encoder: EncoderFile,
    left: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    links: Links,
) -> None:
    """Finds the states with their first values, and the encoder's outputs that stay the same in every step."""
    inputs = {
        name: one
        for name, one in found.inputs.items()
        if name in left or name in (*found.hints.other_roles, *found.hints.states)
    }
    inner = replace(found.hints, constants={n: v for n, v in found.hints.constants.items() if n in inputs})
    pairs = pair_states(found.model, inputs, outputs, inner, [])
    wiring = Wiring(found.model, inputs, outputs)
    offers = {name: one for name, one in encoder.outputs.items() if one.source is None}

    def fits(tensor: Tensor, offer: Placed) -> bool:
        return tensor.dtype == offer.tensor.dtype and is_of_row(tensor, offer.shape)

    def wanted(name: str, *, may_share: bool = False) -> DecoderInput:
        parts = sorted({slot.part for slot in wiring.starts(name)})
        return DecoderInput(found.inputs[name], parts[0] if parts else "", may_share)

    begun = [wanted(name) for name in pairs if name not in found.hints.initial]
    found.initial = match("--initial", begun, offers, links.initial, fits)
    rest = [wanted(name, may_share=True) for name in left if name not in pairs and left[name] is not found.token]
    others = {name: one for name, one in links.contexts.items() if name not in found.contexts}
    found.kept = match(
        "--context", [one for one in rest if one.tensor.name not in found.hints.inputs], offers, others, fits
    )
    for one in rest:
        name = one.tensor.name
        if name not in found.kept and name not in found.hints.inputs:
            raise ExportError(
                f"{found.file.name}: what is {one.tensor}? No output of the encoder fits it: if it is a state, use"
                f" --state {name}=OUTPUT; if the encoder returns it, --context {name}=OUTPUT; if it is constant,"
                f" --constant {name}=VALUE"
            )
    for name, output in found.initial.items():
        found.notes.append(f"state {name} begins with {output} of the encoder")
    for name, output in found.kept.items():
        found.notes.append(f"context {name} = {output} of the encoder, the same in every step")
    for name in pairs:
        if name not in found.initial and name not in found.hints.initial:
            found.notes.append(f"state {name} begins at zero: the encoder does not return it")
    used = {*found.contexts.values(), *found.kept.values(), *found.initial.values()}
    found.notes += [f"output {name} of the encoder is not used" for name in encoder.outputs if name not in used]


def _outputs(found: DecoderFile, step: Steps, outputs: Mapping[str, Tensor], vocabulary_size: int | None) -> list[str]:
    """Returns the output of a step: the one that is no state and does not grow with the source."""
    short, long = step.run(SHORT), step.run(LONG)
    for name in found.hints.outputs:
        if name in short and short[name].shape != long[name].shape:
            raise ExportError(
                f"--output {name}: its size depends on the source's length, like attention weights: name the output"
                " with the logits"
            )
    if found.hints.outputs:
        return list(found.hints.outputs)
    pairs = pair_states(
        found.model,
        {name: one for name, one in found.inputs.items() if name not in (*found.contexts, *found.kept)},
        outputs,
        found.hints,
        [],
    )
    left = [name for name in outputs if name not in pairs.values()]
    own = [name for name in left if short[name].shape == long[name].shape]
    if len(own) > 1 and vocabulary_size is not None:
        own = [name for name in own if short[name].size == vocabulary_size] or own
    if len(own) > 1:
        own = [name for name in own if _LOGITS.search(name)] or own
    if len(own) != 1:
        flags = " or ".join(f"--output {name}" for name in own or outputs)
        raise ExportError(f"{found.file.name}: which output is the logits? Use {flags}")
    return own

"""Exports a user's PyTorch module, from a description: `python -m export torch MODULE:FACTORY`.

The factory is a function without arguments that returns a `TorchModel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import nn

from export.bundle import BundleOptions, Contents, Vocabularies, refuse_sample_rate, write_bundle
from export.errors import ExportError, SignatureError, SizeError, first_line
from export.exportable import OneStep, RowByRow, StepByStep, WithLengths
from export.fitting import Fitted, fit
from export.fitting_encoder import FittedEncoder, advised, fit_encoder
from export.fitting_states import check_states
from export.heads import NEXT_TOKEN, TOP_K
from export.interface import LENGTHS, TOKENS, Interface, encoder_spec
from export.packing import unpacked
from export.plain_layers import plain
from export.returned import Expected
from export.vocabulary import Vocabulary
from service.repository.manifest import (
    ContextSpec,
    SpecialTokens,
    Start,
    StateSpec,
    StepSpec,
    TensorSpec,
)

_LOOP = "its steps are a loop in Python, which is exported for one number of steps"
Shape = Sequence[int | Literal["batch", "source"]]


@dataclass(frozen=True, slots=True)
class TorchModel:
    """Describes a module that advances states step by step.

    module: called as `module(inputs, *states, *contexts)`, or with its states as one tuple or as pairs, and with
    `lengths` if it has such an argument. Returns the outputs, then every next state, in any nesting. inputs: [B, T]
    int64 tokens or [B, T, feature_size] floats; outputs: [B, T, N]. A step's output may depend only on the states and
    on this and earlier steps of `inputs`. `nn.RNN`, `nn.LSTM` and `nn.GRU` inside it become ONNX's own operators;
    PyTorch exports everything else. The exporter puts it into evaluation mode.

    states: the shape of each, by name and in order, with "batch" where rows are counted, such as {"hidden": (1,
    "batch", 64)}. They begin at zero, or with the encoder's values.

    The module reads tokens of `vocabulary`, or `feature_size` numbers a step. It returns logits over `tags`, or over
    `vocabulary` if there are no tags, or `value_size` numbers. feeds_back: whether these numbers are the next step's
    input, so that the model can generate.

    encoder: called as `encoder(source)`, returns every context, then every state's first value. source: [B, S] tokens
    of `source_vocabulary`, padded with 0, or [B, S, source_feature_size]. contexts: the shape of each, by name,
    beginning with "batch", "source"; bool without further axes, floats with them; zero where padded.
    max_source_length: in steps. one_step: whether the module takes one step of each row, [B], [B, 1] or [1, B], then
    features; detected if it cannot take several. start: "last_of_source" runs the source's last vector before a
    session's first step.
    """

    module: nn.Module
    states: Mapping[str, Shape]
    description: str = "A module of our own"
    vocabulary: Vocabulary | None = None
    tags: Vocabulary | None = None
    feature_size: int = 0
    value_size: int = 0
    feeds_back: bool = False
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    encoder: nn.Module | None = None
    source_vocabulary: Vocabulary | None = None
    source_feature_size: int = 0
    contexts: Mapping[str, Shape] = field(default_factory=dict)
    max_source_length: int = 1024
    one_step: bool = False
    start: Start | None = None
    evaluation: Mapping[str, object] = field(default_factory=dict)


def write_module(model: TorchModel, *, notes: list[str] | None = None, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a user's module and returns its folder: see `export.bundle.write_seq2seq`.

    Compares the graphs with the module itself, run row by row. Changes `model.module` and `model.encoder` in place:
    moves them to the CPU, to 32-bit floats and to evaluation mode, and makes weights constant that are computed before
    each run (`plain_layers.plain`). notes: gets lines about the module for the user.
    """
    _check(model)
    refuse_sample_rate(options, is_of_tokens=model.vocabulary is not None)
    lines: list[str] = [] if notes is None else notes
    if isinstance(model.module, torch.jit.ScriptModule):
        raise ExportError("a TorchModel needs the module itself: a scripted one cannot be exported")
    try:
        module = model.module.cpu()
    except NotImplementedError as error:  # its weights are on the meta device, without values
        raise ExportError(f"the module cannot be copied to the CPU: {first_line(error)}") from error
    module = plain(module, lines)
    with unpacked():
        call, found = fit(module, _expected(model), one_step=model.one_step)
        check_states(module, call, _expected(model))
        lines += found
        encoder = None if model.encoder is None else _fitted_encoder(model, model.encoder, lines)
        fitted = Fitted(module, call, _expected(model)).eval()
        if call.is_one_step:
            try:
                return write_bundle(_contents(model, fitted, encoder, is_one_step=True), notes=lines, **options)
            except ExportError as error:
                raise advised(_shapes(model.contexts), error) from None
        try:
            return write_bundle(_contents(model, fitted, encoder, is_one_step=False), notes=lines, **options)
        except SizeError:
            raise
        except ExportError as error:
            is_loop = isinstance(error, SignatureError)
            try:
                folder = write_bundle(_contents(model, fitted, encoder, is_one_step=True), notes=lines, **options)
            except ExportError as second:
                raise advised(_shapes(model.contexts), second if is_loop else error) from None
            why = _LOOP if is_loop else error
            lines.append(f"it is run one step at a time, because several steps in one run are not possible: {why}")
            return folder


def _fitted_encoder(model: TorchModel, encoder: nn.Module, lines: list[str]) -> FittedEncoder:
    module = plain(encoder.cpu(), lines)
    vocabulary = model.source_vocabulary
    call = fit_encoder(
        module,
        _shapes(model.contexts),
        _shapes(model.states),
        vocabulary_size=None if vocabulary is None else len(vocabulary.tokens),
        feature_size=model.source_feature_size,
    )
    lines += [
        f"state {name} begins at zero: the encoder does not return it"
        for name in model.states
        if name not in call.places
    ]
    return FittedEncoder(module, call).eval()


def _contents(model: TorchModel, module: nn.Module, encoder: FittedEncoder | None, *, is_one_step: bool) -> Contents:
    """module, encoder: as `fitting` wraps them. is_one_step: whether the graph takes one step."""
    interface = _interface(model, encoder, is_one_step=is_one_step)
    state_axes = [state.input.shape.index("batch") for state in interface.states]
    context_axes = [0] * len(interface.contexts)
    carried_axes = [*state_axes, *context_axes]
    reference = RowByRow(
        StepByStep(module, len(state_axes)) if is_one_step else module,
        carried_axes=carried_axes,
        result_axes=[0, *state_axes],
        time_axes=[1, *(None for _ in state_axes)],
    )
    encoder_reference = None
    if encoder is not None:
        given = [axis for axis, state in zip(state_axes, interface.states, strict=True) if state.initial]
        encoder_reference = RowByRow(
            encoder,
            carried_axes=[],
            result_axes=[*context_axes, *given],
            time_axes=[*(1 for _ in context_axes), *(None for _ in given)],
        ).eval()
    return Contents(
        interface=interface,
        step=(OneStep(module) if is_one_step else WithLengths(module)).eval(),
        encoder=None if encoder is None else WithLengths(encoder).eval(),
        vocabularies=_vocabularies(model),
        special_tokens=model.special_tokens,
        reference=reference.eval(),
        encoder_reference=encoder_reference,
    )


def _expected(model: TorchModel) -> Expected:
    given = model.tags or model.vocabulary
    return Expected(
        output_size=model.value_size or (0 if given is None else len(given.tokens)),
        states=_shapes(model.states),
        contexts=_shapes(model.contexts),
        vocabulary_size=None if model.vocabulary is None else len(model.vocabulary.tokens),
        feature_size=model.feature_size,
    )


def _shapes(shapes: Mapping[str, Shape]) -> dict[str, tuple[int | str, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}


def _vocabularies(model: TorchModel) -> Vocabularies:
    """Returns the bundle's vocabularies; `vocabulary` is the input's if there are no logits or they are over tags."""
    if model.tags is not None or model.value_size:
        return Vocabularies(source=model.source_vocabulary, input=model.vocabulary, target=model.tags)
    return Vocabularies(source=model.source_vocabulary, target=model.vocabulary)


def _interface(model: TorchModel, encoder: FittedEncoder | None, *, is_one_step: bool) -> Interface:
    initial = () if encoder is None else encoder.call.places
    features = TensorSpec(name="features", dtype="float32", shape=("batch", "time", max(1, model.feature_size)))
    output = TensorSpec(
        name="values" if model.value_size else "logits",
        dtype="float32",
        shape=("batch", "time", _expected(model).output_size),
    )
    return Interface(
        step=StepSpec(
            file="step.onnx",
            tokens=TOKENS if model.vocabulary is not None else None,
            features=features if model.feature_size else None,
            lengths=None if is_one_step else LENGTHS,
            max_chunk=1 if is_one_step else None,
            logits=None if model.value_size else output,
            values=output if model.value_size else None,
            feeds_back=model.feeds_back,
            next_token=None if model.value_size else NEXT_TOKEN,
            top_k=None if model.value_size else TOP_K,
        ),
        states=tuple(
            StateSpec(
                name=name,
                input=TensorSpec(name=name, dtype="float32", shape=tuple(shape)),
                output=f"next_{name}",
                initial=name if name in initial else None,
            )
            for name, shape in model.states.items()
        ),
        encoder=None if encoder is None else encoder_spec(model.source_feature_size, model.max_source_length),
        contexts=tuple(
            ContextSpec(
                name=name,
                input=TensorSpec(name=name, dtype="bool" if len(shape) == 2 else "float32", shape=tuple(shape)),
                output=name,
            )
            for name, shape in model.contexts.items()
        ),
        source_vocabulary_size=None if model.source_vocabulary is None else len(model.source_vocabulary.tokens),
        step_vocabulary_size=None if model.vocabulary is None else len(model.vocabulary.tokens),
        least_token=1 if model.special_tokens.pad_id == 0 else 0,
        start=model.start,
    )


def _check(model: TorchModel) -> None:
    """Raises ExportError for a size that is not possible, and for a description that contradicts itself."""
    _check_sizes(model)
    if (model.vocabulary is None) == (model.feature_size == 0):
        raise ExportError("a TorchModel reads tokens or features: give it a vocabulary or a feature_size")
    if model.value_size and model.tags is not None:
        raise ExportError("a TorchModel returns logits or values: give it tags or a value_size, not both")
    if not model.value_size and model.tags is None and model.vocabulary is None:
        raise ExportError("a TorchModel of features returns values or logits over tags: give it a value_size or tags")
    if not model.states:
        raise ExportError("a TorchModel needs a state: give the shape of each by name, such as hidden=(1, 'batch', 64)")
    for what, shapes in (("state", model.states), ("context", model.contexts)):
        for name, shape in shapes.items():
            if list(shape).count("batch") != 1:
                raise ExportError(f"{what} {name}: its shape {tuple(shape)} must have 'batch' once, at the batch axis")
            _check_axes(what, name, shape)
    is_read = model.source_vocabulary is not None or model.source_feature_size > 0
    if (model.encoder is None) == is_read:
        raise ExportError("an encoder needs a source_vocabulary or a source_feature_size, and these need an encoder")


def _check_sizes(model: TorchModel) -> None:
    for name, size in (
        ("feature_size", model.feature_size),
        ("value_size", model.value_size),
        ("source_feature_size", model.source_feature_size),
    ):
        if size != 0 and not _is_size(size):
            raise ExportError(f"{name} = {size!r}: expected an integer, 1 or more; leave it out if there is none")
    if not _is_size(model.max_source_length):
        raise ExportError(f"max_source_length = {model.max_source_length!r}: expected an integer, 1 or more")


def _check_axes(what: str, name: str, shape: Shape) -> None:
    for place, axis in enumerate(shape):
        if axis not in ("batch", "source") and not _is_size(axis):
            raise ExportError(
                f"{what} {name}: axis {place} of its shape {tuple(shape)} is {axis!r}: expected an integer, 1 or more"
            )


def _is_size(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1

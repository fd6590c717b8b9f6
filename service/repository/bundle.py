"""Loads and checks one bundle: manifest, vocabularies and ONNX Runtime sessions must agree with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import ValidationError

from service.repository.files import FilesError, Stamp, check_files, stamp_of
from service.repository.manifest import (
    BASE_VARIANT,
    FILE_NAME,
    Dtype,
    Manifest,
    ReadoutSpec,
    StepSpec,
    TensorSpec,
    VocabularySpec,
    sha256_of,
)
from service.repository.runtime import RuntimeOptions
from service.repository.vocabulary import Vocabulary

_ORT_TYPES: dict[Dtype, str] = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


class BundleError(Exception):
    """A bundle cannot be served. The message says why and names the file."""


@dataclass(frozen=True, slots=True)
class VariantGraphs:
    """One way to compute the model's step. readout and readout_spec are given together; loop: see `StepSpec`."""

    step: ort.InferenceSession
    step_spec: StepSpec
    readout: ort.InferenceSession | None = None
    readout_spec: ReadoutSpec | None = None
    loop: ort.InferenceSession | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that has passed every check.

    source_vocabulary: for an encoder of tokens; step_vocabulary: for the tokens that steps read, the target's own or
    another one; target_vocabulary: for the logits. Each is None where the model has no tokens. trace: None without a
    trace graph. variants: by name; `BASE_VARIANT` is the manifest's own step and readout. stamp: of the manifest.
    """

    folder: Path
    manifest: Manifest
    manifest_digest: str
    source_vocabulary: Vocabulary | None
    step_vocabulary: Vocabulary | None
    target_vocabulary: Vocabulary | None
    encoder: ort.InferenceSession | None
    variants: Mapping[str, VariantGraphs]
    trace: ort.InferenceSession | None = None
    first_values: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    """First values, without the batch axis, of states that neither begin with zeros nor get them from the encoder. By
    the state's index in the manifest."""
    stamp: Stamp = ()

    @property
    def step(self) -> ort.InferenceSession:
        """The step graph of the base variant."""
        return self.variants[BASE_VARIANT].step

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.model

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def max_token_bytes(self) -> int:
        """Most bytes of one token of an answer on the wire; 0 for a model that returns values."""
        return 0 if self.target_vocabulary is None else self.target_vocabulary.max_token_bytes

    @property
    def max_source_token_bytes(self) -> int:
        """Most bytes of one token of a source, which an answer repeats; 0 when the source has no tokens."""
        return 0 if self.source_vocabulary is None else self.source_vocabulary.max_token_bytes

    @property
    def state_size_bytes(self) -> int:
        """Bytes of state tensors of each session."""
        return sum(np.dtype(state.input.dtype).itemsize * state.size for state in self.manifest.states)


def load_bundle(folder: Path, runtime: RuntimeOptions | None = None) -> Bundle:
    """Checks and loads `<model>/<version>/`. runtime: options for running its graphs; None: the defaults.

    Raises BundleError when the folder contains what no bundle may (see `check_files`), when the manifest is missing,
    malformed or of another model, when a file is missing or has another digest, or when a vocabulary or a graph does
    not match the manifest.
    """
    try:
        check_files(folder, texts=(FILE_NAME,))
        with (folder / FILE_NAME).open("rb") as opened:
            stamp, text = stamp_of(opened.fileno()), opened.read()
    except FilesError as error:
        raise BundleError(str(error)) from error
    except OSError as error:
        raise BundleError(f"{FILE_NAME} cannot be read: {error.strerror}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{FILE_NAME} is malformed: {_first_problem(error)}") from error
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        raise BundleError(
            f"{FILE_NAME} is for {manifest.model}/{manifest.version}, but its folder is"
            f" {folder.parent.name}/{folder.name}: rename the folder to {manifest.model}/{manifest.version}"
        )
    for file in manifest.files:
        _check_digest(folder / file, manifest.digests[file])
    try:
        check_files(folder, texts=[file for spec in manifest.vocabularies for file in spec.files])
        source, step, target = _load_vocabularies(folder, manifest)
    except (FilesError, ValueError, OSError) as error:
        raise BundleError(str(error)) from error
    runtime = runtime or RuntimeOptions()
    variants = {BASE_VARIANT: _load_variant(folder, manifest, manifest.step, manifest.readout, runtime)}
    for name, variant in manifest.variants.items():
        variants[name] = _load_variant(folder, manifest, variant.step, variant.readout, runtime)
    encoder = None
    if manifest.encoder is not None:
        encoder = _load_graph(folder / manifest.encoder.file, runtime)
        _check_graph(manifest.encoder.file, encoder, _encoder_inputs(manifest), _encoder_outputs(manifest))
    trace = None
    if manifest.trace is not None:
        trace = _load_graph(folder / manifest.trace.file, runtime)
        outputs = [output.tensor for output in manifest.trace.outputs]
        inputs = _step_inputs(manifest, manifest.step)
        rows = manifest.step.max_rows
        _check_graph(manifest.trace.file, trace, inputs, outputs, max_chunk=1, max_rows=rows, takes_all=False)
    digest, first = hashlib.sha256(text).hexdigest(), _first_values(folder, manifest)
    return Bundle(folder, manifest, digest, source, step, target, encoder, variants, trace, first, stamp)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _check_digest(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}") from error
    if found != expected:
        raise BundleError(
            f"{path.name} has SHA-256 {found}, but the manifest says {expected}: copy or export the bundle again"
        )


def _load_vocabularies(
    folder: Path, manifest: Manifest
) -> tuple[Vocabulary | None, Vocabulary | None, Vocabulary | None]:
    """Loads the vocabularies of the source, of the tokens that steps read, and of those that steps return."""

    def load(spec: VocabularySpec | None, what: str) -> Vocabulary | None:
        return None if spec is None else Vocabulary.load(folder / spec.file, spec, owner=f"{what} of {manifest.model}")

    source = load(manifest.source_vocabulary, "the source vocabulary")
    target = load(manifest.target_vocabulary, "the vocabulary")
    if manifest.input_vocabulary is not None:
        return source, load(manifest.input_vocabulary, "the input vocabulary"), target
    return source, target if manifest.step.tokens is not None else None, target


def _first_values(folder: Path, manifest: Manifest) -> dict[int, NDArray[Any]]:
    found: dict[int, NDArray[Any]] = {}
    for place, state in enumerate(manifest.states):
        shape, dtype = state.row_shape, state.input.dtype
        if state.constant is not None and state.constant.default:
            found[place] = np.array(state.constant.default, dtype).reshape(shape)
        elif state.initial_file is not None:
            try:
                # mmap mode compares the sizes in the file's header with the size of the file
                mapped = np.load(folder / state.initial_file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise BundleError(f"{state.initial_file} is not a NumPy array: {error}") from error
            if (mapped.dtype, mapped.shape) != (np.dtype(dtype), shape):
                expected = f"state {state.name} is {dtype} {list(shape)}"
                raise BundleError(f"{state.initial_file} is {mapped.dtype} {list(mapped.shape)}, but {expected}")
            found[place] = np.array(mapped)
    return found


def _load_graph(path: Path, runtime: RuntimeOptions) -> ort.InferenceSession:
    try:
        return runtime.load(str(path))
    except Exception as error:  # ONNX Runtime's exception classes have no common base except Exception
        raise BundleError(f"{path.name} is not a graph that ONNX Runtime can load: {error}") from error


def _load_variant(
    folder: Path, manifest: Manifest, step_spec: StepSpec, readout_spec: ReadoutSpec | None, runtime: RuntimeOptions
) -> VariantGraphs:
    step = _load_step(folder / step_spec.file, manifest, step_spec.of_one_step, runtime)
    loop = None if step_spec.loop is None else _load_step(folder / step_spec.loop, manifest, step_spec, runtime)
    if readout_spec is None:
        return VariantGraphs(step, step_spec, loop=loop)
    readout = _load_graph(folder / readout_spec.file, runtime)
    _check_graph(readout_spec.file, readout, _readout_inputs(manifest, readout_spec), [readout_spec.logits])
    return VariantGraphs(step, step_spec, readout, readout_spec, loop)


def _load_step(path: Path, manifest: Manifest, spec: StepSpec, runtime: RuntimeOptions) -> ort.InferenceSession:
    step = _load_graph(path, runtime)
    optional = [] if spec.top_k is None else [spec.top_k.k]
    inputs, outputs = _step_inputs(manifest, spec), _step_outputs(manifest, spec)
    _check_graph(path.name, step, inputs, outputs, optional, max_chunk=spec.max_chunk, max_rows=spec.max_rows)
    return step


def _step_inputs(manifest: Manifest, step: StepSpec) -> list[TensorSpec]:
    states = [state.input for state in manifest.states]
    lengths = [] if step.lengths is None else [step.lengths]
    constants = [TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in step.constants]
    return [step.input, *lengths, *states, *(context.input for context in manifest.contexts), *constants]


def _step_outputs(manifest: Manifest, step: StepSpec) -> list[TensorSpec]:
    states = [state.input.model_copy(update={"name": state.output}) for state in manifest.states]
    next_token = [] if step.next_token is None else [step.next_token]
    top_k = [] if step.top_k is None else [step.top_k.log_probabilities, step.top_k.token_ids]
    return [step.output, *states, *next_token, *top_k]


def _readout_inputs(manifest: Manifest, readout: ReadoutSpec) -> list[TensorSpec]:
    states = [state.input for state in manifest.states if state.name in readout.states]
    return [*states, *(context.input for context in manifest.contexts if context.name in readout.contexts)]


def _encoder_inputs(manifest: Manifest) -> list[TensorSpec]:
    assert manifest.encoder is not None  # noqa: S101  # the caller checks this
    return [manifest.encoder.source, manifest.encoder.lengths]


def _encoder_outputs(manifest: Manifest) -> list[TensorSpec]:
    initial = [s.input.model_copy(update={"name": s.initial}) for s in manifest.states if s.initial is not None]
    return [*initial, *(c.input.model_copy(update={"name": c.output}) for c in manifest.contexts)]


def _check_graph(
    file: str,
    session: ort.InferenceSession,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    optional: Sequence[TensorSpec] = (),
    *,
    max_chunk: int | None = None,
    max_rows: int | None = None,
    takes_all: bool = True,
) -> None:
    """Raises BundleError when a graph's inputs or outputs differ from the manifest.

    optional: inputs with a default in the graph, which need not be fed. takes_all: whether the graph must have all of
    `inputs`, not only some.
    """
    found_inputs = {node.name: node for node in session.get_inputs()}
    found_outputs = {node.name: node for node in session.get_outputs()}
    found_optional = {node.name: node for node in session.get_overridable_initializers()}
    surplus = sorted(set(found_inputs) - {spec.name for spec in inputs})
    if surplus:
        named = surplus[0] in {spec.name for spec in optional}
        problem = "must have a default in the graph" if named else "is not in the manifest"
        raise BundleError(f"{file}: input {surplus[0]} {problem}")
    for role, specs, found in (
        ("input", inputs, found_inputs),
        ("input with a default", optional, found_optional),
        ("output", outputs, found_outputs),
    ):
        for spec in specs:
            if spec.name not in found and role == "input" and not takes_all:
                continue
            if spec.name not in found:
                raise BundleError(f"{file} has no {role} {spec.name}, which the manifest names")
            _check_tensor(f"{file}: {role} {spec.name}", spec, found[spec.name], _lone_axes(max_chunk, max_rows))


def _lone_axes(max_chunk: int | None, max_rows: int | None) -> set[str]:
    """Returns the axes that may be fixed at 1 in the graph."""
    limits = {"time": max_chunk, "batch": max_rows}
    return {axis for axis, limit in limits.items() if limit == 1}


def _check_tensor(where: str, spec: TensorSpec, node: ort.NodeArg, lone_axes: set[str]) -> None:
    if node.type != _ORT_TYPES[spec.dtype]:
        raise BundleError(f"{where} is {node.type}, but the manifest says {spec.dtype}")
    fixed = [axis if isinstance(axis, int) else None for axis in node.shape]
    expected = [axis if isinstance(axis, int) else None for axis in spec.shape]
    for index, axis in enumerate(spec.shape):  # ONNX Runtime infers a size of 1 where the graph declares none
        if axis in lone_axes and fixed[index : index + 1] == [1]:
            expected[index] = 1
    if fixed != expected:
        raise BundleError(f"{where} has shape {node.shape}, but the manifest says {list(spec.shape)}")

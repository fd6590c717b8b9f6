"""One bundle, checked and loaded: manifest, vocabularies and ONNX Runtime sessions that agree with each other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
from pydantic import ValidationError

from service.repository.manifest import (
    BASE_VARIANT,
    FILE_NAME,
    Manifest,
    ReadoutSpec,
    StepSpec,
    TensorSpec,
    sha256_of,
)
from service.repository.runtime import RuntimeOptions
from service.repository.vocabulary import Vocabulary

_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}


class BundleError(Exception):
    """A bundle cannot be served; the message says why, naming the file."""


@dataclass(frozen=True, slots=True)
class VariantGraphs:
    """One way to compute the model's step. readout and readout_spec are None together."""

    step: ort.InferenceSession
    step_spec: StepSpec
    readout: ort.InferenceSession | None = None
    readout_spec: ReadoutSpec | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that has passed every check. The source vocabulary is None and the encoder is None together.

    variants: by name; `BASE_VARIANT` is the manifest's own step and readout.
    """

    folder: Path
    manifest: Manifest
    manifest_digest: str
    source_vocabulary: Vocabulary | None
    target_vocabulary: Vocabulary
    encoder: ort.InferenceSession | None
    variants: Mapping[str, VariantGraphs]

    @property
    def step(self) -> ort.InferenceSession:
        """The step graph of the base."""
        return self.variants[BASE_VARIANT].step

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.model

    @property
    def version(self) -> int:
        """The version."""
        return self.manifest.version

    @property
    def state_size_bytes(self) -> int:
        """Bytes of state tensors that each session holds."""
        itemsize = {"float32": 4, "int64": 8, "bool": 1}
        return sum(
            itemsize[state.input.dtype] * math.prod(axis for axis in state.input.shape if isinstance(axis, int))
            for state in self.manifest.states
        )


def load_bundle(folder: Path, runtime: RuntimeOptions | None = None) -> Bundle:
    """Checks and loads `<model>/<version>/`. runtime: how its graphs are run; None: by the defaults.

    Raises BundleError: the manifest is missing or malformed, is another model's, a file is missing or has another
    digest, a vocabulary is not what the manifest says, or a graph is not.
    """
    manifest_path = folder / FILE_NAME
    try:
        text = manifest_path.read_bytes()
    except OSError as error:
        raise BundleError(f"{FILE_NAME} cannot be read: {error.strerror}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{FILE_NAME} is malformed: {_first_problem(error)}") from error
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        raise BundleError(
            f"{FILE_NAME} is of {manifest.model}/{manifest.version}, but lies in {folder.parent.name}/{folder.name}"
        )
    for file in manifest.files:
        _check_digest(folder / file, manifest.digests[file])
    try:
        source, target = _load_vocabularies(folder, manifest)
    except (ValueError, OSError) as error:
        raise BundleError(str(error)) from error
    runtime = runtime or RuntimeOptions()
    variants = {BASE_VARIANT: _load_variant(folder, manifest, manifest.step, manifest.readout, runtime)}
    for name, variant in manifest.variants.items():
        variants[name] = _load_variant(folder, manifest, variant.step, variant.readout, runtime)
    encoder = None
    if manifest.encoder is not None:
        encoder = _load_graph(folder / manifest.encoder.file, runtime)
        _check_graph(manifest.encoder.file, encoder, _encoder_inputs(manifest), _encoder_outputs(manifest))
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest(), source, target, encoder, variants)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _check_digest(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}") from error
    if found != expected:
        raise BundleError(f"{path.name} has SHA-256 {found}, but the manifest gives it {expected}")


def _load_vocabularies(folder: Path, manifest: Manifest) -> tuple[Vocabulary | None, Vocabulary]:
    source = None
    if manifest.source_vocabulary is not None:
        spec = manifest.source_vocabulary
        source = Vocabulary.load(folder / spec.file, spec, owner=f"the source vocabulary of {manifest.model}")
    spec = manifest.target_vocabulary
    return source, Vocabulary.load(folder / spec.file, spec, owner=f"the vocabulary of {manifest.model}")


def _load_graph(path: Path, runtime: RuntimeOptions) -> ort.InferenceSession:
    try:
        return runtime.load(str(path))
    except Exception as error:  # ONNX Runtime raises classes of its own, all derived from Exception alone
        raise BundleError(f"{path.name} is not a graph that ONNX Runtime can load: {error}") from error


def _load_variant(
    folder: Path, manifest: Manifest, step_spec: StepSpec, readout_spec: ReadoutSpec | None, runtime: RuntimeOptions
) -> VariantGraphs:
    step = _load_graph(folder / step_spec.file, runtime)
    optional = [] if step_spec.top_k is None else [step_spec.top_k.k]
    inputs, outputs = _step_inputs(manifest, step_spec), _step_outputs(manifest, step_spec)
    _check_graph(step_spec.file, step, inputs, outputs, optional, max_chunk=step_spec.max_chunk)
    if readout_spec is None:
        return VariantGraphs(step, step_spec)
    readout = _load_graph(folder / readout_spec.file, runtime)
    _check_graph(readout_spec.file, readout, _readout_inputs(manifest, readout_spec), [readout_spec.logits])
    return VariantGraphs(step, step_spec, readout, readout_spec)


def _step_inputs(manifest: Manifest, step: StepSpec) -> list[TensorSpec]:
    states = [state.input for state in manifest.states]
    return [step.tokens, step.lengths, *states, *(context.input for context in manifest.contexts)]


def _step_outputs(manifest: Manifest, step: StepSpec) -> list[TensorSpec]:
    states = [state.input.model_copy(update={"name": state.output}) for state in manifest.states]
    next_token = [] if step.next_token is None else [step.next_token]
    top_k = [] if step.top_k is None else [step.top_k.log_probabilities, step.top_k.token_ids]
    return [step.logits, *states, *next_token, *top_k]


def _readout_inputs(manifest: Manifest, readout: ReadoutSpec) -> list[TensorSpec]:
    states = [state.input for state in manifest.states if state.name in readout.states]
    return [*states, *(context.input for context in manifest.contexts if context.name in readout.contexts)]


def _encoder_inputs(manifest: Manifest) -> list[TensorSpec]:
    assert manifest.encoder is not None  # noqa: S101  # the caller has looked
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
) -> None:
    """optional: inputs that have a default in the graph, and need not be fed."""
    found_inputs = {node.name: node for node in session.get_inputs()}
    found_outputs = {node.name: node for node in session.get_outputs()}
    found_optional = {node.name: node for node in session.get_overridable_initializers()}
    surplus = sorted(set(found_inputs) - {spec.name for spec in inputs})
    if surplus:
        named = surplus[0] in {spec.name for spec in optional}
        problem = "without a default" if named else "that the manifest does not name"
        raise BundleError(f"{file} has an input {surplus[0]} {problem}")
    for role, specs, found in (
        ("input", inputs, found_inputs),
        ("input with a default", optional, found_optional),
        ("output", outputs, found_outputs),
    ):
        for spec in specs:
            if spec.name not in found:
                raise BundleError(f"{file} has no {role} {spec.name}, which the manifest names")
            _check_tensor(f"{file}: {role} {spec.name}", spec, found[spec.name], max_chunk)


def _check_tensor(where: str, spec: TensorSpec, node: ort.NodeArg, max_chunk: int | None) -> None:
    if node.type != _ORT_TYPES[spec.dtype]:
        raise BundleError(f"{where} is {node.type}, but the manifest says {spec.dtype}")
    fixed = [axis if isinstance(axis, int) else None for axis in node.shape]
    expected = [axis if isinstance(axis, int) else None for axis in spec.shape]
    if max_chunk == 1:  # ONNX Runtime infers, of some outputs, that their time axis is 1
        lone = [index for index, axis in enumerate(spec.shape) if axis == "time" and fixed[index : index + 1] == [1]]
        expected = [1 if index in lone else axis for index, axis in enumerate(expected)]
    if fixed != expected:
        raise BundleError(f"{where} has shape {node.shape}, but the manifest says {list(spec.shape)}")

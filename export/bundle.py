"""Writes a trained model as a bundle: exports and proves its graphs, describes them, then writes all files at once."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from torch import nn

from export import card
from export.errors import ExportError, SizeError
from export.folder import refuse_existing, write_folder
from export.graphs import Graphs, export_graphs
from export.history import with_history
from export.interface import (
    Interface,
    forecaster_interface,
    language_model_interface,
    seq2seq_interface,
    tagger_interface,
)
from export.proofs.proof import prove
from export.rounded import export_in_8_bits
from export.trace import trace_or_note
from export.variants import INT8, Evaluate, make_int8
from export.vocabulary import Vocabulary
from models.forecaster import Forecaster
from models.language_model import LanguageModel
from models.seq2seq import DecoderReadout, Seq2Seq
from models.tagger import Tagger
from models.token_stack import TokenReadout
from service.repository.manifest import (
    FILE_NAME,
    Manifest,
    Parity,
    SpecialTokens,
    VariantSpec,
    VocabularySpec,
)

MAX_BUNDLE_BYTES = 16_000_000
"""The largest size of a bundle by default, in bytes: shipped bundles are stored in version control."""
MAX_TOKENS = 256

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_SOURCE_FILE, _INPUT_FILE, _TARGET_FILE = "source.txt", "input.txt", "target.txt"


class _Required(TypedDict):
    to: Path
    name: str
    description: str


class BundleOptions(_Required, total=False):
    """Options of every bundle, for any model.

    to, name, version: the bundle's folder is `to/name/version`; version defaults to 1. description: one line.
    evaluation: the recipe's results, for the manifest. sample_rate: of a model of sound. max_tokens: most tokens of a
    generation whose request sets no limit. write_card: makes the README from the manifest. extra_files: further files
    by name, which the server does not read. int8: whether to make that variant; `evaluate_int8` gets the base and the
    variant and may reject the variant. weights_in_8_bits: whether to round large weights (`models.rounding`) and store
    them in 8 bits, a quarter of the size. trace: whether to make the trace graph, by default yes. packages: packages
    whose versions the manifest lists. max_bytes: the bundle's largest size. replace: whether to replace an existing
    version.
    """

    version: int
    evaluation: Mapping[str, object]
    max_tokens: int
    sample_rate: int | None
    write_card: Callable[[Manifest], str]
    extra_files: Mapping[str, bytes]
    int8: bool
    evaluate_int8: Evaluate | None
    weights_in_8_bits: bool
    trace: bool
    packages: Sequence[str]
    max_bytes: int
    replace: bool


def write_seq2seq(
    model: Seq2Seq,
    *,
    source: Vocabulary,
    target: Vocabulary,
    special_tokens: SpecialTokens,
    max_source_length: int = 64,
    **options: Unpack[BundleOptions],
) -> Path:
    """Writes the bundle of `model` and returns its folder. Does not change `model`.

    max_source_length: in tokens. The same model and arguments give the same bytes. Raises the following errors, and
    writes nothing then: ExportError when a proof fails, a vocabulary does not fit the model, the version exists, or the
    bundle is larger than max_bytes; pydantic's ValidationError when an argument does not fit the manifest; OSError when
    the files cannot be written.
    """
    _check_vocabulary("source", source, model.config.source_vocabulary_size)
    _check_vocabulary("target", target, model.config.target_vocabulary_size)
    model = copy.deepcopy(model).cpu().float().eval()
    interface, step = _kept(seq2seq_interface(model.config, max_source_length=max_source_length), model.decoder, target)
    contents = Contents(
        interface=interface,
        step=step,
        encoder=model.encoder,
        readout=DecoderReadout(model.decoder).eval(),
        vocabularies=Vocabularies(source=source, target=target),
        special_tokens=special_tokens,
    )
    options.setdefault("max_tokens", 64)
    return write_bundle(contents, **options)


def write_language_model(
    model: LanguageModel, *, vocabulary: Vocabulary, special_tokens: SpecialTokens, **options: Unpack[BundleOptions]
) -> Path:
    """Writes the bundle of a language model and returns its folder: see `write_seq2seq`."""
    _check_vocabulary("target", vocabulary, model.config.vocabulary_size)
    model = copy.deepcopy(model).cpu().float().eval()
    interface, step = _kept(language_model_interface(model.config), model, vocabulary)
    contents = Contents(
        interface=interface,
        step=step,
        readout=TokenReadout(model).eval(),
        vocabularies=Vocabularies(target=vocabulary),
        special_tokens=special_tokens,
    )
    return write_bundle(contents, **options)


def write_tagger(model: Tagger, *, vocabulary: Vocabulary, tags: Vocabulary, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a tagger and returns its folder: see `write_seq2seq`. vocabulary: of its input tokens."""
    _check_vocabulary("input", vocabulary, model.config.vocabulary_size)
    _check_vocabulary("target", tags, model.config.num_tags)
    model = copy.deepcopy(model).cpu().float().eval()
    contents = Contents(
        interface=tagger_interface(model.config),
        step=model,
        readout=TokenReadout(model).eval(),
        vocabularies=Vocabularies(input=vocabulary, target=tags),
    )
    return write_bundle(contents, **options)


def write_forecaster(model: Forecaster, *, max_source_length: int = 1024, **options: Unpack[BundleOptions]) -> Path:
    """Writes the bundle of a forecaster and returns its folder: see `write_seq2seq`. max_source_length: in steps."""
    model = copy.deepcopy(model).cpu().float().eval()
    contents = Contents(
        interface=forecaster_interface(model.config, max_source_length=max_source_length),
        step=model.decoder,
        encoder=model.encoder,
    )
    return write_bundle(contents, **options)


def _kept(interface: Interface, step: nn.Module, vocabulary: Vocabulary) -> tuple[Interface, nn.Module]:
    """Adds the history state to the interface and the step if text of the vocabulary's subwords needs it."""
    return (interface, step) if vocabulary.subwords is None else with_history(interface, step)


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """Vocabularies of the source, the step's input if it differs from the target's, and the logits. None: numbers."""

    source: Vocabulary | None = None
    input: Vocabulary | None = None
    target: Vocabulary | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """Returns the vocabularies' files by name."""
        found: dict[str, bytes] = {}
        for file, vocabulary in self._named:
            found |= {} if vocabulary is None else vocabulary.files(file)
        return found

    @property
    def specs(self) -> list[VocabularySpec | None]:
        """Returns the manifest's entry of each vocabulary: source, input, target."""
        return [None if vocabulary is None else vocabulary.spec(file) for file, vocabulary in self._named]

    @property
    def _named(self) -> tuple[tuple[str, Vocabulary | None], ...]:
        return (_SOURCE_FILE, self.source), (_INPUT_FILE, self.input), (_TARGET_FILE, self.target)


@dataclass(frozen=True, slots=True)
class Contents:
    """A model in evaluation mode: its modules, called as `export.interface` says, and its vocabularies.

    reference, encoder_reference: the modules that the graphs are compared with; None: `step` and `encoder`.
    """

    interface: Interface
    step: nn.Module
    encoder: nn.Module | None = None
    readout: nn.Module | None = None
    vocabularies: Vocabularies = field(default_factory=Vocabularies)
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    reference: nn.Module | None = None
    encoder_reference: nn.Module | None = None


def write_bundle(contents: Contents, *, notes: list[str] | None = None, **options: Unpack[BundleOptions]) -> Path:
    """Exports a model, proves its graphs and writes its bundle: see `write_seq2seq`. notes: see `write_graphs`."""
    _refuse_existing(options)
    interface = contents.interface
    export = export_in_8_bits if options.get("weights_in_8_bits", False) else export_graphs
    graphs = export(interface, contents.step, contents.encoder, contents.readout)
    parity = prove(
        graphs, interface, contents.reference or contents.step, contents.encoder_reference or contents.encoder
    )
    return write_graphs(
        graphs, interface, contents.vocabularies, contents.special_tokens, parity, notes=notes, **options
    )


def write_graphs(
    graphs: Graphs,
    interface: Interface,
    vocabularies: Vocabularies,
    special_tokens: SpecialTokens,
    parity: Parity,
    *,
    notes: list[str] | None = None,
    **options: Unpack[BundleOptions],
) -> Path:
    """Writes proven graphs as a bundle: see `write_seq2seq`. notes: see `trace.trace_or_note`."""
    folder = _refuse_existing(options)
    files = {**_graph_files(graphs, interface), **vocabularies.files, **_first_values(interface)}
    variants: dict[str, VariantSpec] = {}
    if options.get("int8", False):
        variant = make_int8(graphs, interface, options.get("evaluate_int8"))
        variants[INT8] = variant.spec
        files |= variant.files
    of_one_step = dataclasses.replace(interface, step=interface.step.of_one_step)
    trace = trace_or_note(graphs.step, of_one_step, notes) if options.get("trace", True) else None
    if trace is not None:
        files[trace.spec.file] = trace.graph
    source, read, target = vocabularies.specs
    sample_rate = options.get("sample_rate")
    is_new = interface.needs_format_2 or sample_rate is not None or any(one.is_new for one in vocabularies.specs if one)
    manifest = Manifest(
        format_version=2 if is_new else 1,
        model=options["name"],
        version=options.get("version", 1),
        description=options["description"],
        encoder=interface.encoder,
        step=interface.step,
        readout=interface.readout if graphs.readout is not None else None,
        variants=variants,
        states=interface.states,
        contexts=interface.contexts,
        trace=None if trace is None else trace.spec,
        source_vocabulary=source,
        input_vocabulary=read,
        target_vocabulary=target,
        start=interface.start,
        special_tokens=special_tokens,
        sample_rate=sample_rate,
        max_tokens=options.get("max_tokens", MAX_TOKENS),
        digests={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        exported_with={package: version_of(package) for package in options.get("packages", _PACKAGES)},
        parity=parity,
        evaluation=dict(options.get("evaluation", {})),
    )
    files[FILE_NAME] = (manifest.model_dump_json(indent=2) + "\n").encode()
    files[card.FILE_NAME] = options.get("write_card", card.write_card)(manifest).encode()
    files = {**options.get("extra_files", {}), **files}
    total, limit = sum(len(content) for content in files.values()), options.get("max_bytes", MAX_BUNDLE_BYTES)
    if total > limit:
        raise SizeError(f"the bundle would have {total} bytes, more than the {limit} allowed by --max-bytes")
    write_folder(folder, files, replace=options.get("replace", False))
    return folder


def refuse_sample_rate(options: BundleOptions, *, is_of_tokens: bool) -> None:
    """Raises ExportError for a sample rate of a model that reads tokens."""
    rate = options.get("sample_rate")
    if is_of_tokens and rate is not None:
        raise ExportError(f"--sample-rate {rate}: a model that reads tokens has no sample rate: leave it out")


def _refuse_existing(options: BundleOptions) -> Path:
    """Returns the bundle's folder. Raises ExportError when it exists and `replace` is not set."""
    folder = options["to"] / options["name"] / str(options.get("version", 1))
    refuse_existing(folder, replace=options.get("replace", False))
    return folder


def _check_vocabulary(side: str, vocabulary: Vocabulary, size: int) -> None:
    if len(vocabulary.tokens) != size:
        raise ExportError(f"the {side} vocabulary has {len(vocabulary.tokens)} tokens, but the model has {size}")


def _first_values(interface: Interface) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for state in interface.states:
        if state.initial_file is not None:
            file = io.BytesIO()
            np.save(file, np.ascontiguousarray(interface.first_values[state.name]), allow_pickle=False)
            files[state.initial_file] = file.getvalue()
    return files


def _graph_files(graphs: Graphs, interface: Interface) -> dict[str, bytes]:
    others = ((interface.encoder, graphs.encoder), (interface.readout, graphs.readout))
    named: dict[str | None, bytes | None] = {interface.step.file: graphs.step, interface.step.loop: graphs.loop}
    named |= {spec.file: graph for spec, graph in others if spec is not None}
    return {file: graph for file, graph in named.items() if file is not None and graph is not None}

"""A trained model to a bundle: exported, proven, described, and only then written, whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path

from torch import nn

from export import card
from export.errors import ExportError
from export.folder import refuse_existing, write_folder
from export.graphs import Graphs, export_graphs
from export.interface import Interface, language_model_interface, seq2seq_interface
from export.proof import prove
from export.variants import INT8, Evaluate, make_int8
from export.vocabulary import Vocabulary
from models.language_model import LanguageModel, LanguageModelReadout
from models.seq2seq import DecoderReadout, Seq2Seq
from service.repository.manifest import FILE_NAME, Manifest, SpecialTokens, VariantSpec

MAX_BUNDLE_BYTES = 16_000_000
"""The most a bundle may weigh unless its writer says otherwise: shipped bundles live in version control."""

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_SOURCE_FILE, _TARGET_FILE = "source.txt", "target.txt"


def write_seq2seq(
    model: Seq2Seq,
    *,
    to: Path,
    name: str,
    version: int = 1,
    description: str,
    source: Vocabulary,
    target: Vocabulary,
    special_tokens: SpecialTokens,
    evaluation: Mapping[str, object],
    max_source_length: int = 64,
    max_tokens: int = 64,
    write_card: Callable[[Manifest], str] = card.write_card,
    extra_files: Mapping[str, bytes] | None = None,
    int8: bool = False,
    evaluate_int8: Evaluate | None = None,
    max_bytes: int = MAX_BUNDLE_BYTES,
    replace: bool = False,
) -> Path:
    """Writes the bundle of `model` as `to/name/version` and returns that folder. The model itself is left as it is.

    max_source_length, max_tokens: in tokens. write_card: gives the README of a manifest. extra_files: what lies beside
    it and is not read at serving, by name. int8: whether to make that variant, which `evaluate_int8` may refuse, given
    both. replace: take the place of the version that is there. The same model and
    arguments give the same bytes. Raises, and writes nothing: ExportError when a proof fails, a vocabulary does not fit
    the model, the version is there already, or the bundle is over max_bytes; pydantic's ValidationError when an
    argument does not fit the manifest; OSError when the disk refuses.
    """
    _check_vocabulary("source", source, model.config.source_vocabulary_size)
    _check_vocabulary("target", target, model.config.target_vocabulary_size)
    model = copy.deepcopy(model).cpu().float().eval()
    contents = _Contents(
        interface=seq2seq_interface(model.config, max_source_length=max_source_length),
        step=model.decoder,
        encoder=model.encoder,
        readout=DecoderReadout(model.decoder).eval(),
        source=source,
        target=target,
        special_tokens=special_tokens,
        max_tokens=max_tokens,
        description=description,
        evaluation=evaluation,
        int8=int8,
        evaluate_int8=evaluate_int8,
    )
    place = _Place(to, name, version, max_bytes, replace)
    return _write(contents, place, write_card, extra_files or {})


def write_language_model(
    model: LanguageModel,
    *,
    to: Path,
    name: str,
    version: int = 1,
    description: str,
    vocabulary: Vocabulary,
    special_tokens: SpecialTokens,
    evaluation: Mapping[str, object],
    max_tokens: int = 256,
    write_card: Callable[[Manifest], str] = card.write_card,
    extra_files: Mapping[str, bytes] | None = None,
    int8: bool = False,
    evaluate_int8: Evaluate | None = None,
    max_bytes: int = MAX_BUNDLE_BYTES,
    replace: bool = False,
) -> Path:
    """Writes the bundle of a language model as `to/name/version` and returns that folder: see `write_seq2seq`."""
    _check_vocabulary("target", vocabulary, model.config.vocabulary_size)
    model = copy.deepcopy(model).cpu().float().eval()
    contents = _Contents(
        interface=language_model_interface(model.config),
        step=model,
        encoder=None,
        readout=LanguageModelReadout(model).eval(),
        source=None,
        target=vocabulary,
        special_tokens=special_tokens,
        max_tokens=max_tokens,
        description=description,
        evaluation=evaluation,
        int8=int8,
        evaluate_int8=evaluate_int8,
    )
    place = _Place(to, name, version, max_bytes, replace)
    return _write(contents, place, write_card, extra_files or {})


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a bundle is made of."""

    interface: Interface
    step: nn.Module
    encoder: nn.Module | None
    readout: nn.Module
    source: Vocabulary | None
    target: Vocabulary
    special_tokens: SpecialTokens
    max_tokens: int
    description: str
    evaluation: Mapping[str, object]
    int8: bool
    evaluate_int8: Evaluate | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a bundle goes."""

    repository: Path
    name: str
    version: int
    max_bytes: int
    replace: bool


def _check_vocabulary(side: str, vocabulary: Vocabulary, size: int) -> None:
    if len(vocabulary.tokens) != size:
        raise ExportError(f"the {side} vocabulary has {len(vocabulary.tokens)} tokens and the model {size}")


def _write(
    contents: _Contents, place: _Place, write_card: Callable[[Manifest], str], extra_files: Mapping[str, bytes]
) -> Path:
    folder = place.repository / place.name / str(place.version)
    refuse_existing(folder, replace=place.replace)
    interface, source, target = contents.interface, contents.source, contents.target
    graphs = export_graphs(interface, contents.step, contents.encoder, contents.readout)
    parity = prove(graphs, interface, contents.step, contents.encoder)
    files = {**_graph_files(graphs, interface), _TARGET_FILE: target.to_lines()}
    if source is not None:
        files[_SOURCE_FILE] = source.to_lines()
    variants: dict[str, VariantSpec] = {}
    if contents.int8:
        variant = make_int8(graphs, interface, contents.evaluate_int8)
        variants[INT8] = variant.spec
        files |= variant.files
    manifest = Manifest(
        model=place.name,
        version=place.version,
        description=contents.description,
        encoder=interface.encoder,
        step=interface.step,
        readout=interface.readout,
        variants=variants,
        states=interface.states,
        contexts=interface.contexts,
        source_vocabulary=source.spec(_SOURCE_FILE) if source is not None else None,
        target_vocabulary=target.spec(_TARGET_FILE),
        special_tokens=contents.special_tokens,
        max_tokens=contents.max_tokens,
        digests={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        exported_with={package: version_of(package) for package in _PACKAGES},
        parity=parity,
        evaluation=dict(contents.evaluation),
    )
    files[FILE_NAME] = (manifest.model_dump_json(indent=2) + "\n").encode()
    files[card.FILE_NAME] = write_card(manifest).encode()
    files = {**extra_files, **files}
    total = sum(len(content) for content in files.values())
    if total > place.max_bytes:
        raise ExportError(f"the bundle would weigh {total} bytes, more than the {place.max_bytes} allowed")
    write_folder(folder, files, replace=place.replace)
    return folder


def _graph_files(graphs: Graphs, interface: Interface) -> dict[str, bytes]:
    files = {interface.step.file: graphs.step}
    if interface.encoder is not None and graphs.encoder is not None:
        files[interface.encoder.file] = graphs.encoder
    if interface.readout is not None and graphs.readout is not None:
        files[interface.readout.file] = graphs.readout
    return files

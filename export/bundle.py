"""A trained model to a bundle: exported, proven, described, and only then written, whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version as version_of
from pathlib import Path

from export import card
from export.errors import ExportError
from export.folder import refuse_existing, write_folder
from export.graphs import Graphs, export_graphs
from export.interface import Interface, seq2seq_interface
from export.proof import prove
from export.vocabulary import Vocabulary
from models.seq2seq import Seq2Seq
from service.repository.manifest import FILE_NAME, Manifest, SpecialTokens

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
    max_bytes: int = MAX_BUNDLE_BYTES,
    replace: bool = False,
) -> Path:
    """Writes the bundle of `model` as `to/name/version` and returns that folder. The model itself is left as it is.

    max_source_length, max_tokens: in tokens. write_card: gives the README of a manifest. extra_files: what lies beside
    it and is not read at serving, by name. replace: take the place of the version that is there. The same model and
    arguments give the same bytes. Raises, and writes nothing: ExportError when a proof fails, a vocabulary does not fit
    the model, the version is there already, or the bundle is over max_bytes; pydantic's ValidationError when an
    argument does not fit the manifest; OSError when the disk refuses.
    """
    folder = to / name / str(version)
    refuse_existing(folder, replace=replace)
    for side, vocabulary, size in (
        ("source", source, model.config.source_vocabulary_size),
        ("target", target, model.config.target_vocabulary_size),
    ):
        if len(vocabulary.tokens) != size:
            raise ExportError(f"the {side} vocabulary has {len(vocabulary.tokens)} tokens and the model {size}")
    files = {_SOURCE_FILE: source.to_lines(), _TARGET_FILE: target.to_lines()}
    model = copy.deepcopy(model).cpu().float().eval()
    interface = seq2seq_interface(model.config, max_source_length=max_source_length)
    graphs = export_graphs(interface, model.decoder, model.encoder)
    parity = prove(graphs, interface, model.decoder, model.encoder)
    files = {**_graph_files(graphs, interface), **files}
    manifest = Manifest(
        model=name,
        version=version,
        description=description,
        encoder=interface.encoder,
        step=interface.step,
        states=interface.states,
        contexts=interface.contexts,
        source_vocabulary=source.spec(_SOURCE_FILE),
        target_vocabulary=target.spec(_TARGET_FILE),
        special_tokens=special_tokens,
        max_tokens=max_tokens,
        digests={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        exported_with={package: version_of(package) for package in _PACKAGES},
        parity=parity,
        evaluation=dict(evaluation),
    )
    files[FILE_NAME] = (manifest.model_dump_json(indent=2) + "\n").encode()
    files[card.FILE_NAME] = write_card(manifest).encode()
    files = {**(extra_files or {}), **files}
    total = sum(len(content) for content in files.values())
    if total > max_bytes:
        raise ExportError(f"the bundle would weigh {total} bytes, more than the {max_bytes} allowed")
    write_folder(folder, files, replace=replace)
    return folder


def _graph_files(graphs: Graphs, interface: Interface) -> dict[str, bytes]:
    files = {interface.step.file: graphs.step}
    if interface.encoder is not None and graphs.encoder is not None:
        files[interface.encoder.file] = graphs.encoder
    return files

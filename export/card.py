"""Writes the reference part of a model card from the manifest alone: inputs and outputs, graphs, proofs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.repository.manifest import ContextSpec, Manifest, PortSpec, StateSpec, StepSpec, VocabularySpec

FILE_NAME = "README.md"
_FEW = 4
"""Most numbers of a session constant that the card shows."""
_TOKENIZERS = {
    "characters": "characters",
    "whitespace": "words between white space",
    "subword": "pieces of words, by SentencePiece",
}


def write_card(manifest: Manifest) -> str:
    """Returns a whole card, in Markdown, made from the manifest alone."""
    return f"# {manifest.model}, version {manifest.version}\n\n{manifest.description}\n\n{reference(manifest)}"


def reference(manifest: Manifest) -> str:
    """Returns the sections at the end of every card, in Markdown, each under a second-level heading."""
    return "\n".join([*_text(manifest), *_graphs(manifest), *_variants(manifest), *_proofs(manifest)])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table and an empty line."""
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _text(manifest: Manifest) -> list[str]:
    rows = []
    for side, vocabulary in (
        ("source", manifest.source_vocabulary),
        ("input", manifest.input_vocabulary),
        ("target", manifest.target_vocabulary),
    ):
        if vocabulary is not None:
            rows.append([side, f"`{vocabulary.file}`", str(vocabulary.size), _tokenizer(vocabulary)])
    sentences = []
    if manifest.step_vocabulary is not None:
        special = ", ".join(f"{name} {token_id}" for name, token_id in manifest.special_tokens if token_id is not None)
        sentences.append(f"Special tokens: {special}.")
    if manifest.encoder is not None:
        unit = _unit(manifest.encoder.feature_size)
        sentences.append(f"Sources of up to {manifest.encoder.max_source_length} {unit}.")
    if manifest.step.features is not None:
        vector = _unit(manifest.step.feature_size).replace("vectors", "a vector")
        sentences.append(f"A step reads {vector}{_parts(manifest.step.inputs)}.")
    if manifest.step.values is not None:
        sentences.append(f"It returns {_number(manifest.step.value_size)}{_parts(manifest.step.outputs)}.")
    if manifest.can_generate:
        sentences.append(f"At most {manifest.max_tokens} steps are generated unless a request sets its own limit.")
    title, vocabularies = "Vocabularies", table(["side", "file", "tokens", "text is split into"], rows)
    if not rows:
        title, vocabularies = "Numbers", []
    return [f"## {title}", "", *vocabularies, " ".join(sentences), ""]


def _parts(ports: Sequence[PortSpec]) -> str:
    """Returns the named parts of a vector, in order."""
    listed = ", ".join(f"`{port.name}` {port.dtype} {list(port.shape)}" for port in ports)
    return f": {listed}" if listed else ""


def _unit(feature_size: int) -> str:
    return f"vectors of {_number(feature_size)}" if feature_size else "tokens"


def _number(count: int) -> str:
    return f"{count} number{'s' if count > 1 else ''}"


def _tokenizer(vocabulary: VocabularySpec) -> str:
    split = _TOKENIZERS[vocabulary.tokenizer]
    return f"{split}, lower-cased first" if vocabulary.lowercase else split


def _graphs(manifest: Manifest) -> list[str]:
    kinds: list[tuple[StateSpec | ContextSpec, str]] = [(part, _kind(part)) for part in manifest.states]
    kinds += [(part, "context") for part in manifest.contexts]
    rows = [[part.name, kind, part.input.dtype, f"[{', '.join(map(str, part.input.shape))}]"] for part, kind in kinds]
    encoder = f"`{manifest.encoder.file}` reads a source once. " if manifest.encoder else ""
    readout = ""
    if manifest.readout is not None:
        readout += f" `{manifest.readout.file}` returns the next logits from a state, without a step."
    if manifest.trace is not None:
        readout += (
            f" `{manifest.trace.file}` returns what happens inside a step: `carousel inspect {manifest.model}` draws"
            " it."
        )
    return [
        "## Graphs",
        "",
        f"{encoder}{_advances(manifest)}{readout}",
        "",
        "A session carries:",
        "",
        *table(["tensor", "kind", "type", "shape"], rows),
    ]


def _kind(state: StateSpec) -> str:
    """Returns what kind of state it is: one that steps change, or a constant of the session."""
    constant = state.constant
    if constant is None:
        return "state with a first value other than zeros" if state.initial_file else "state"
    if constant.is_session_number:
        return "number of the session"
    if constant.choices:
        return f"session constant: {' or '.join(_listed(one) for one in constant.choices)}"
    return f"session constant, {_listed(constant.default)} by default" if constant.default else "session constant"


def _listed(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:_FEW])
    return shown if len(numbers) <= _FEW else f"{shown} and {len(numbers) - _FEW} more"


def _advances(manifest: Manifest) -> str:
    step = manifest.step
    if step.loop is not None:
        return f"`{step.file}` advances a batch by one step, and `{step.loop}` a ragged batch by several."
    if step.max_chunk == 1:
        return f"`{step.file}` advances a batch by one step."
    return f"`{step.file}` advances a ragged batch by one or more tokens."


def _variants(manifest: Manifest) -> list[str]:
    if not manifest.variants:
        return []
    rows = [
        [
            f"`{name}`",
            f"`{variant.step.file}`",
            variant.description,
            f"{variant.parity.max_abs_error[variant.step.output.name]:.1e}",
        ]
        for name, variant in manifest.variants.items()
    ]
    return [
        "## Variants",
        "",
        "The same step in other arithmetic, chosen when a session is opened. The last column is the largest difference "
        "from the 32-bit logits over whole sequences of random tokens.",
        "",
        *table(["variant", "graph", "what it is", "logits off by"], rows),
    ]


def invariance(step: StepSpec) -> list[str]:
    """Returns sentences about batching and chunking: which of them keep a row's bits."""
    if step.max_rows is None and step.max_chunk is None:
        return [
            "a row's outputs were found bit-identical alone and in batches, in any order, step by step and in "
            "chunks, with more padding, and beside rows of NaN and infinity."
        ]
    rows = (
        "Several rows in a run: a row's outputs were found bit-identical alone and in batches, in any order, and"
        " beside rows of NaN and infinity."
        if step.max_rows is None
        else "Several rows in a run: a row's bits change, or it cannot run. Sessions run one by one."
    )
    chunks = (
        "Several steps in a run: the same bits as one by one."
        if step.max_chunk is None
        else "Several steps in a run: the bits change, or it cannot run. Each step is its own run."
    )
    return [rows, chunks]


def _proofs(manifest: Manifest) -> list[str]:
    parity = manifest.parity
    found = invariance(manifest.step)
    versions = ", ".join(f"{package} {version}" for package, version in manifest.exported_with.items())
    errors = [[f"`{name}`", f"{error:.1e}"] for name, error in parity.max_abs_error.items()]
    return [
        "## Proofs",
        "",
        "Before this bundle was written, its graphs were compared with"
        f" {parity.reference}{' in double precision' if parity.reference == 'PyTorch' else ''}, on {parity.num_rows}"
        f" rows of random ragged batches, step by step and in chunks, with a tolerance of {parity.tolerance:g}:",
        "",
        *table(["tensor", "largest absolute error"], errors),
        *([f"And {found[0]}"] if len(found) == 1 else [f"- {line}" for line in found]),
        "",
        f"Exported with {versions}.",
        "",
    ]

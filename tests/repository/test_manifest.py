"""A manifest that contradicts itself is refused, with a message that names the place."""

from __future__ import annotations

import copy
import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.repository import manifest as contract
from service.repository.manifest import Manifest, sha256_of
from service.repository.steps import HISTORY
from tests import domain

CHANGES: list[tuple[str, dict[str, Any], str]] = [
    # (what is wrong, the changed values by path, a part of the message)
    ("a format of the future", {"format_version": 3}, "format_version: Input should be 1 or 2"),
    (
        "names of tokens",
        {"format_version": 2, "step.inputs": [{"name": "x"}]},
        "step.inputs: the sizes of the parts must add up to 0, not 1",
    ),
    ("a name in upper case", {"model": "G2P"}, "model: String should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'"),
    ("a name with a folder", {"model": "a/b"}, "model: String should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'"),
    ("a name too long", {"model": "a" * 65}, "model: String should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'"),
    ("version 0", {"version": 0}, "version: Input should be greater than or equal to 1"),
    ("a version too big", {"version": 2**31}, "version: Input should be less than or equal to 2147483647"),
    ("no limit", {"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    (
        "a file elsewhere",
        {"step.file": "../step.onnx"},
        "step.file: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'",
    ),
    (
        "a digest cut short",
        {"digests": {"step.onnx": "ab"}},
        "digests.step.onnx: String should match pattern '^[0-9a-f]{64}$'",
    ),
    (
        "a dtype that does not exist",
        {"step.logits.dtype": "float8"},
        "step.logits.dtype: Input should be 'float32', 'float64', 'float16', 'int64', 'int32' or 'bool'",
    ),
    ("a vocabulary of one", {"target_vocabulary.size": 1}, "size: Input should be greater than or equal to 2"),
    (
        "a tokenizer that does not exist",
        {"target_vocabulary.tokenizer": "bpe"},
        "target_vocabulary.tokenizer: Input should be 'characters', 'whitespace' or 'subword'",
    ),
    ("a source of no tokens", {"encoder.max_source_length": 0}, "encoder.max_source_length: Input should be greater"),
    (
        "a source of added tokens alone",
        {"format_version": 2, "encoder.max_source_length": 1, "encoder.eos_id": 1},
        "encoder.max_source_length = 1 leaves no room for a token beside encoder.bos_id and encoder.eos_id",
    ),
    (
        "an added token that the source's vocabulary has not",
        {"format_version": 2, "encoder.eos_id": 999},
        "encoder.eos_id = 999 is outside the source vocabulary",
    ),
    (
        "an added token in the first format",
        {"encoder.eos_id": 1},
        "format_version must be 2, because a step, a state, an encoder or a vocabulary uses a field that version 1",
    ),
    ("a negative id", {"special_tokens.eos_id": -1}, "special_tokens.eos_id: Input should be greater than or equal"),
    (
        "a state without a batch axis",
        {"states.0.input.shape": [1, 2, 3]},
        "state hidden: shape [1, 2, 3] must have one batch axis and no other",
    ),
    (
        "a state with two batch axes",
        {"states.0.input.shape": ["batch", "batch"]},
        "state hidden: shape ['batch', 'batch'] must have one batch axis and no other",
    ),
    (
        "a state with a time axis",
        {"states.1.input.shape": ["batch", "time", 2]},
        "state cell: shape ['batch', 'time', 2] must have one batch axis and no other",
    ),
    (
        "a state with a source axis",
        {"states.1.input.shape": ["batch", "source"]},
        "state cell: shape ['batch', 'source'] must have one batch axis and no other",
    ),
    (
        "a context without a source axis",
        {"contexts.0.input.shape": ["batch", 2]},
        "context memory: shape ['batch', 2] must be [batch, source, ...], with only",
    ),
    (
        "a context in another order",
        {"contexts.0.input.shape": ["source", "batch", 2]},
        "context memory: shape ['source', 'batch', 2] must be [batch, source, ...], with only",
    ),
    (
        "a context with a time axis",
        {"contexts.0.input.shape": ["batch", "source", "time"]},
        "context memory: shape ['batch', 'source', 'time'] must be [batch, source, ...], with only",
    ),
    (
        "a context with two source axes",
        {"contexts.0.input.shape": ["batch", "source", "source"]},
        "context memory: shape ['batch', 'source', 'source'] must be [batch, source, ...], with only",
    ),
    ("an encoder without its vocabulary", {"source_vocabulary": None}, "source_vocabulary must be given exactly when"),
    ("a vocabulary without its encoder", {"encoder": None}, "source_vocabulary must be given exactly when the encoder"),
    (
        "contexts without an encoder",
        {"encoder": None, "source_vocabulary": None},
        "contexts and initial states need an encoder",
    ),
    (
        "an initial state without an encoder",
        {"encoder": None, "source_vocabulary": None, "contexts": [], "states.0.initial": "first_hidden"},
        "contexts and initial states need an encoder",
    ),
    (
        "tokens and features",
        {"step.features": {"name": "x", "dtype": "float32", "shape": ["batch", "time", 3]}},
        "exactly one of step.tokens and step.features must be given",
    ),
    (
        "neither tokens nor features",
        {"step.tokens": None},
        "exactly one of step.tokens and step.features must be given",
    ),
    ("neither logits nor values", {"step.logits": None}, "exactly one of step.logits and step.values must be given"),
    (
        "features without a size",
        {"step.tokens": None, "step.features": {"name": "x", "dtype": "float32", "shape": ["batch", "time"]}},
        "step.features must be float32 ['batch', 'time', 0], not float32 ['batch', 'time']",
    ),
    (
        "values with a vocabulary",
        {"step.logits": None, "step.values": {"name": "y", "dtype": "float32", "shape": ["batch", "time", 3]}},
        "target_vocabulary must be given exactly when step.logits or step.emits",
    ),
    (
        "logits without a vocabulary",
        {"target_vocabulary": None},
        "target_vocabulary must be given exactly when step.logits",
    ),
    (
        "values that are fed back without any",
        {"step.feeds_back": True},
        "step.feeds_back needs step.values and step.features",
    ),
    ("chunks without lengths", {"step.lengths": None}, "step.max_chunk must be 1 when step.lengths is not given"),
    ("two rows at once", {"step.max_rows": 2}, "step.max_rows: Input should be less than or equal to 1"),
    (
        "a constant with too few values",
        {"step.constants": [{"name": "sr", "dtype": "int64", "shape": [2], "values": [1]}]},
        "constant sr has 1 values, but shape [2] needs 2",
    ),
    (
        "a start of a model that reads tokens",
        {"start": "last_of_source"},
        "start needs an encoder of features, with as many",
    ),
    (
        "a trace of another form",
        {
            "trace": {
                "file": "trace.onnx",
                "outputs": [{"name": "gate", "tensor": {"name": "g", "dtype": "float32", "shape": ["batch", 3]}}],
            }
        },
        "trace gate must be float32 [batch, time, units], not float32 ['batch', 3]",
    ),
    (
        "an unknown token outside",
        {"target_vocabulary.unknown_id": 6},
        "unknown_id = 6 is outside the vocabulary (0 to 5)",
    ),
    ("no state", {"states": []}, "states must not be empty: a recurrent model has state"),
    (
        "logits of another size",
        {"step.logits.shape": ["batch", "time", 7]},
        "step.logits must be float32 ['batch', 'time', 6], not float32 ['batch', 'time', 7]",
    ),
    (
        "logits that are no floats",
        {"step.logits.dtype": "int64"},
        "step.logits must be float32 ['batch', 'time', 6], not int64 ['batch', 'time', 6]",
    ),
    (
        "tokens that are no integers",
        {"step.tokens.dtype": "float32"},
        "step.tokens must be int64 ['batch', 'time'], not float32 ['batch', 'time']",
    ),
    (
        "a step that takes one token alone",
        {"step.tokens.shape": ["batch", 1]},
        "step.tokens must be int64 ['batch', 'time'], not int64 ['batch', 1]",
    ),
    (
        "lengths for the whole batch",
        {"step.lengths.shape": [1]},
        "step.lengths must be int64 ['batch'], not int64 [1]",
    ),
    (
        "a source that is the other way round",
        {"encoder.source.shape": ["source", "batch"]},
        "encoder.source must be int64 ['batch', 'source'], not int64 ['source', 'batch']",
    ),
    (
        "source lengths that are no integers",
        {"encoder.lengths.dtype": "bool"},
        "encoder.lengths must be int64 ['batch'], not bool ['batch']",
    ),
    (
        "a token outside",
        {"special_tokens.eos_id": 6},
        "special_tokens.eos_id = 6 is outside the vocabulary (0 to 5)",
    ),
    ("padding outside", {"special_tokens.pad_id": 9}, "special_tokens.pad_id = 9 is outside the vocabulary (0 to 5)"),
    (
        "one name twice",
        {"contexts.0.name": "cell"},
        "states and contexts must have distinct names, not ['hidden', 'cell', 'cell']",
    ),
    (
        "digests left out",
        {"digests": {"encoder.onnx": domain.DIGEST}},
        "digests lacks step.onnx, source.txt, ",
    ),
]


def whole() -> Manifest:
    return domain.manifest(contexts=(domain.context("memory"),), has_encoder=True)


def changed(changes: dict[str, Any], of: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns a manifest as JSON, with the value at each path replaced. of: the manifest; None: the whole one."""
    values = copy.deepcopy(whole().model_dump(mode="json") if of is None else of)
    for path, value in changes.items():
        *parents, last = path.split(".")
        part: Any = values
        for name in parents:
            part = part[int(name)] if isinstance(part, list) else part[name]
        part[last] = value
    return values


NAMED: dict[str, Any] = {
    "model": "named",
    "version": 1,
    "description": "",
    "format_version": 2,
    "step": {
        "file": "step.onnx",
        "features": {"name": "x", "dtype": "float32", "shape": ["batch", "time", 5]},
        "values": {"name": "y", "dtype": "float32", "shape": ["batch", "time", 3]},
        "inputs": [{"name": "seen", "shape": [4]}, {"name": "rate"}],
        "outputs": [{"name": "action", "shape": [2]}, {"name": "count", "dtype": "int64", "shape": [1]}],
        "max_chunk": 1,
    },
    "states": [{"name": "h", "input": {"name": "h", "dtype": "float32", "shape": ["batch", 2]}, "output": "hn"}],
    "max_tokens": 1,
    "digests": {"step.onnx": "0" * 64},
    "exported_with": {},
    "parity": {"tolerance": 0.0, "max_abs_error": {}, "num_rows": 0},
    "evaluation": {},
}


def test_the_parts_of_vectors_may_have_names() -> None:
    manifest = Manifest.model_validate(NAMED)
    assert [port.size for port in (*manifest.step.inputs, *manifest.step.outputs)] == [4, 1, 2, 1]
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 1},
            "format_version must be 2, because a step, a state, an encoder or a vocabulary uses a field that version 1",
        ),
        (
            {"step.inputs.0.shape": [5]},
            "step.inputs: the sizes of the parts must add up to 5, not 6",
        ),
        ({"step.outputs.1.name": "action"}, "step.outputs must have distinct names"),
        ({"step.loop": "loop.onnx"}, "step.loop needs step.lengths"),
        ({"step.outputs.1.name": "a b"}, "step.outputs.1.name: String should match pattern"),
    ],
)
def test_named_parts_must_cover_the_whole_vector(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(changed(changes, of=NAMED))
    messages = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in refusal.value.errors()]
    assert any(message in line for line in messages), messages


def test_older_servers_can_read_a_manifest_without_names() -> None:
    step = {name: value for name, value in NAMED["step"].items() if name not in ("inputs", "outputs")}
    written = Manifest.model_validate(NAMED | {"step": step, "format_version": 1}).model_dump(mode="json")
    assert "inputs" not in written["step"]
    assert "outputs" not in written["step"]


@pytest.mark.parametrize(("changes", "message"), [change[1:] for change in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_manifest_that_is_wrong_is_refused_saying_where(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(changed(changes))
    messages = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in refusal.value.errors()]
    assert any(message in line for line in messages), messages


PARTS = [
    "",
    "encoder",
    "encoder.source",
    "step",
    "states.0",
    "contexts.0",
    "target_vocabulary",
    "special_tokens",
    "parity",
]


@pytest.mark.parametrize(
    "part",
    [
        "",
        "encoder",
        "encoder.source",
        "step",
        "states.0",
        "contexts.0",
        "target_vocabulary",
        "special_tokens",
        "parity",
    ],
)
def test_a_field_that_the_contract_does_not_know_is_refused(part: str) -> None:
    """This holds for every part of the manifest."""
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(changed({f"{part}.surprise".removeprefix("."): 1}))
    (problem,) = refusal.value.errors()
    assert problem["type"] == "extra_forbidden"
    assert problem["loc"][-1] == "surprise"


@pytest.mark.parametrize("field", ["model", "version", "step", "states", "digests", "parity"])
def test_a_field_that_is_missing_is_told(field: str) -> None:
    values = changed({})
    del values[field]
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(values)
    assert [problem["loc"] for problem in refusal.value.errors()] == [(field,)]


@pytest.mark.parametrize("has_encoder", [False, True])
def test_a_manifest_read_back_from_its_json_is_the_same(has_encoder: bool) -> None:
    written = domain.manifest(has_encoder=has_encoder)
    read = Manifest.model_validate_json(written.model_dump_json())
    assert read == written
    assert read.model_dump_json() == written.model_dump_json()


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        whole().model = "other"  # type: ignore[misc]


def test_the_files_are_those_that_serving_reads() -> None:
    assert whole().files == ("encoder.onnx", "step.onnx", "source.txt", "target.txt")
    assert domain.manifest().files == ("step.onnx", "target.txt")


def test_every_field_of_the_contract_is_documented() -> None:
    parts = [part for part in vars(contract).values() if isinstance(part, type) and issubclass(part, BaseModel)]
    for part in parts:
        source = Path(inspect.getfile(part)).read_text(encoding="utf-8").splitlines()
        for field in part.model_fields:
            line = next(number for number, text in enumerate(source) if text.startswith(f"    {field}: "))
            assert source[line + 1].startswith('    """'), f"{part.__name__}.{field} has no docstring"


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"carousel\n" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"carousel\n" * 100_000).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "other")


WORDS = {
    "file": "target.txt",
    "size": 9,
    "tokenizer": "subword",
    "subwords": "target.subwords",
}
HISTORY_STATE = {
    "name": "history",
    "input": {"name": "history", "dtype": "int64", "shape": ["batch", HISTORY]},
    "output": "next_history",
}


def worded() -> dict[str, Any]:
    """Returns a language model of subwords that keeps its last tokens."""
    return {
        "model": "worded",
        "version": 1,
        "description": "",
        "format_version": 2,
        "step": {
            "file": "step.onnx",
            "tokens": {"name": "tokens", "dtype": "int64", "shape": ["batch", "time"]},
            "lengths": {"name": "lengths", "dtype": "int64", "shape": ["batch"]},
            "logits": {"name": "logits", "dtype": "float32", "shape": ["batch", "time", 9]},
            "history": "history",
        },
        "states": [*NAMED["states"], HISTORY_STATE],
        "target_vocabulary": WORDS,
        "special_tokens": {"bos_id": 1},
        "max_tokens": 1,
        "digests": dict.fromkeys(("step.onnx", "target.txt", "target.subwords"), "0" * 64),
        "exported_with": {},
        "parity": NAMED["parity"],
        "evaluation": {},
    }


def test_a_step_may_keep_its_last_tokens() -> None:
    manifest = Manifest.model_validate(worded())
    assert manifest.history == 1
    assert {"target.txt", "target.subwords"} <= set(manifest.files)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step.history": "cell"}, "step.history names cell, which is not a state"),
        ({"step.history": "h"}, f"the state h must be int64 ['batch', {HISTORY}], not float32 ['batch', 2]"),
        (
            {"target_vocabulary.tokenizer": "whitespace", "target_vocabulary.subwords": None},
            "step.history needs a target_vocabulary of subwords, and steps that read its tokens",
        ),
        ({"format_version": 1}, "format_version must be 2"),
        ({"digests": {"step.onnx": "0" * 64, "target.txt": "0" * 64}}, "digests lacks target.subwords"),
    ],
)
def test_a_history_without_a_subword_vocabulary_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(changed(changes, of=worded()))
    messages = [problem["msg"] for problem in refusal.value.errors()]
    assert any(message in line for line in messages), messages

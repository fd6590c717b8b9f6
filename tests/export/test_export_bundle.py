"""A model becomes a bundle that returns what the model returns. A bundle with other results is not written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import onnxruntime
import torch

from export.bundle import write_language_model, write_seq2seq
from export.errors import ExportError
from export.vocabulary import Vocabulary
from models.language_model import LanguageModelConfig, random_language_model
from models.recurrent import RecurrentLayer
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import Manifest, SpecialTokens, sha256_of
from tests.export.tiny_seq2seq import EXTRA_FILES, tiny_bundle, tiny_model, write_tiny


class WrongGateOrder(RecurrentLayer):
    """Makes the usual mistake: it gives ONNX the gates in PyTorch's order i, f, g, o. ONNX expects i, o, f, c."""

    def prepare_for_export(self) -> None:
        super().prepare_for_export()
        first, second, third, fourth = self.onnx_recurrence.chunk(4, dim=1)
        self.onnx_recurrence = torch.cat([first, third, fourth, second], dim=1)


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    """Returns the model to export. It is in training mode, as after training."""
    return tiny_model()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the model's bundle, in its own model repository."""
    return tiny_bundle(tmp_path_factory)


def test_the_bundle_holds_what_its_manifest_says(bundle: Path) -> None:
    """Every file exists and has its digest, vocabularies have their sizes, and no partial file is left."""
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert (manifest.model, manifest.version) == ("tiny", 1)
    assert bundle.parts[-2:] == ("tiny", "1")
    assert {file.name for file in bundle.iterdir()} == {*manifest.files, "manifest.json", "README.md", "notes.txt"}
    assert {file: sha256_of(bundle / file) for file in manifest.files} == manifest.digests
    assert (bundle / "source.txt").read_text() == "<pad>\na\nb\nc\nd\ne\n"
    assert len((bundle / "target.txt").read_text().splitlines()) == manifest.output_size
    assert manifest.evaluation == {"error": 1.0}
    assert set(manifest.exported_with) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]
    assert bundle.stat().st_mode & 0o777 == bundle.parent.stat().st_mode & 0o777


def test_the_manifest_records_the_parity_of_every_tensor(bundle: Path) -> None:
    """Each output of both graphs has its largest error, and no error is over the tolerance."""
    parity = Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).parity
    assert set(parity.max_abs_error) == {
        *("memory", "memory_mask", "hidden", "cell"),
        *("logits", "next_hidden", "next_cell"),
    }
    assert max(parity.max_abs_error.values()) < 1e-5 < parity.tolerance
    assert parity.num_rows > 100


def test_the_graphs_return_what_the_model_returns(model: Seq2Seq, bundle: Path) -> None:
    """Run token by token, with only the names in the manifest, the graphs give the logits of teacher forcing."""
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert manifest.encoder is not None
    encoder = onnxruntime.InferenceSession(bundle / manifest.encoder.file)
    step = onnxruntime.InferenceSession(bundle / manifest.step.file)
    source, target = np.array([[3, 1, 4, 1, 5]]), np.array([[1, 3, 6, 4, 5, 2]])

    feeds = {manifest.encoder.source.name: source, manifest.encoder.lengths.name: np.array([5])}
    encoded = dict(zip([output.name for output in encoder.get_outputs()], encoder.run(None, feeds), strict=True))
    carried = {context.input.name: encoded[context.output] for context in manifest.contexts}
    carried |= {state.input.name: encoded[state.initial] for state in manifest.states if state.initial}
    logits = []
    for token in target[0]:
        feeds = {"tokens": np.array([[token]]), "lengths": np.array([1]), **carried}
        answer = dict(zip([output.name for output in step.get_outputs()], step.run(None, feeds), strict=True))
        carried |= {state.input.name: answer[state.output] for state in manifest.states}
        logits.append(answer[manifest.step.output.name][0, 0])

    with torch.no_grad():
        expected = _in_evaluation(model)(torch.from_numpy(source), None, torch.from_numpy(target))
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-5)


def test_the_graphs_contain_nothing_about_the_machine(bundle: Path) -> None:
    """They have no stack traces, source paths, module names or doc strings, and they contain all weights."""
    for file in ("encoder.onnx", "step.onnx"):
        content = (bundle / file).read_bytes()
        for trace in (str(Path(__file__).parents[2]).encode(), b"site-packages", b"seq2seq", b"stack_trace", b"pkg."):
            assert trace not in content
        graph = onnx.load_from_string(content)
        assert not graph.metadata_props
        assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)
        assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in graph.graph.initializer)
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 22)]


def test_the_same_model_gives_the_same_bytes_and_is_left_as_it_was(
    model: Seq2Seq, bundle: Path, tmp_path: Path
) -> None:
    """A second export changes no byte, so graphs have different digests only if the models differ. It works on a copy
    of the model: mode and weights do not change, and no buffer is added."""
    again = write_tiny(model, tmp_path, extra_files=EXTRA_FILES)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in bundle.iterdir()
    }
    assert model.training
    assert not list(model.buffers())
    weights = zip(model.parameters(), tiny_model().parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in weights)


def test_the_card_agrees_with_the_manifest(bundle: Path) -> None:
    """The README has the model, its tensors and its parity from the manifest."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    card = (bundle / "README.md").read_text()
    assert card.startswith("# tiny, version 1\n\nA tiny model with random weights\n")
    assert "| memory | context | float32 | [batch, source, 8] |" in card
    assert f"| `logits` | {manifest['parity']['max_abs_error']['logits']:.1e} |" in card


def test_a_graph_that_disagrees_with_pytorch_is_not_written(tmp_path: Path) -> None:
    """The error shows that a layer has the wrong gate order, and nothing is written."""
    model = random_language_model(LanguageModelConfig(3, 8, 16, 1), seed=0)
    layers = model.stack.layers
    wrong = WrongGateOrder("lstm", 8, 16)
    wrong.load_state_dict(layers[0].state_dict())
    layers[0] = wrong
    with pytest.raises(ExportError, match=r"is off by 0\.\d+ from PyTorch, more than 0.0005, for a row of 0 source"):
        write_language_model(
            model,
            to=tmp_path,
            name="tiny",
            description="",
            vocabulary=Vocabulary(("a", "b", "c"), "characters"),
            special_tokens=SpecialTokens(),
        )
    assert not list(tmp_path.iterdir())


def test_an_existing_version_is_refused_before_any_work(model: Seq2Seq, bundle: Path) -> None:
    """The existing bundle does not change, and the message says what to do."""
    before = {file.name: file.stat().st_mtime_ns for file in bundle.iterdir()}
    with pytest.raises(ExportError, match=r"tiny/1 exists: use another version, or .* --replace"):
        write_tiny(model, bundle.parents[1])
    assert {file.name: file.stat().st_mtime_ns for file in bundle.iterdir()} == before


def test_a_vocabulary_of_another_size_is_refused(model: Seq2Seq, tmp_path: Path) -> None:
    """A vocabulary must have as many tokens as the model."""
    with pytest.raises(ExportError, match="the source vocabulary has 3 tokens, but the model has 9"):
        write_seq2seq(
            Seq2Seq(Seq2SeqConfig(9, 7, hidden_size=16)),
            to=tmp_path,
            name="tiny",
            description="",
            source=Vocabulary(("<pad>", "a", "b"), "characters"),
            target=Vocabulary(("<pad>", "<s>", "</s>", "A", "B", "C", "D"), "whitespace"),
            special_tokens=SpecialTokens(),
            evaluation={},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("<pad>", "a", "a"), "token 'a' is in the vocabulary twice, as 1 and 2"),
        (("<pad>", ""), "token 1 is empty"),
        (("<pad>",), "the vocabulary must have at least 2 tokens, but has 1"),
    ],
)
def test_a_vocabulary_that_lines_cannot_hold_is_refused(tokens: tuple[str, ...], message: str) -> None:
    """A vocabulary is stored with one token a line, and must be read back as the same tokens."""
    with pytest.raises(ExportError, match=message):
        Vocabulary(tokens, "characters")


def _in_evaluation(model: Seq2Seq) -> Seq2Seq:
    copy = Seq2Seq(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy

"""The translator's run becomes a bundle with weights in 8 bits, a card, and the list of the sources of its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sacrebleu")

import onnx
import torch
from safetensors.torch import save_file

from export.__main__ import main
from models.recipes.translate_training import MODEL
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import Manifest, sha256_of
from service.repository.subwords import Subwords
from tests.subwords import model

SOURCE = {"name": "some", "licence": "MIT", "packages": {"some": "1.0"}, "sha256": {"some": "ab"}}
SCORES = {"bleu": 41.23, "chrf": 60.5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Returns a run folder as the recipe writes it, with an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "pieces.model").write_bytes(model())
    size = len(Subwords(model()).pieces)
    sizes = {"embedding_size": 64, "hidden_size": 64, "attention_size": 16, "num_layers": 1}
    config = Seq2SeqConfig(size, size, **sizes, has_shared_embedding=True)  # type: ignore[arg-type]  # by name
    weights = dict(Seq2Seq(config).named_parameters())
    metadata = {"model": MODEL, "config": json.dumps(config.to_json())}
    checkpoint = folder / "best.safetensors"
    save_file({name: tensor.detach() for name, tensor in weights.items()}, checkpoint, metadata=metadata)
    evaluation = {
        "checkpoint_sha256": sha256_of(checkpoint),
        "task": "messages",
        "split": "by hash",
        "num_training_pairs": 1000,
        "num_test_pairs": 1234,
        "length_penalty": 0.5,
        "greedy": SCORES,
        "beam_4": SCORES,
        "nearest_source": {"bleu": 2.0, "chrf": 3.0},
        "word_by_word": {"bleu": 1.0, "chrf": 4.0},
        "signatures": {"bleu": "a|b", "chrf": "c|d"},
        "examples": [["a | b", "c", "d"]],
        "sentences": [["The cat.", "Die Katze."]],
        "sources": [{**SOURCE, "messages": 7, "pairs": 5, "kept": 4}],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_a_run_becomes_a_bundle_in_8_bits(run: Path, tmp_path: Path) -> None:
    assert main(["translate", str(run / "best.safetensors"), "--to", str(tmp_path)]) == 0
    bundle = tmp_path / MODEL / "1"
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert manifest.step.history == "history"
    assert manifest.source_vocabulary is not None
    assert manifest.source_vocabulary.tokenizer == "subword"
    assert manifest.evaluation["greedy"] == SCORES
    assert "examples" not in manifest.evaluation
    assert json.loads((bundle / "sources.json").read_text())[0]["licence"] == "MIT"
    assert (bundle / "target.subwords").read_bytes() == model()
    readout = onnx.load(bundle / "readout.onnx")
    in_8_bits = [tensor for tensor in readout.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert [64, manifest.source_vocabulary.size] in [list(tensor.dims) for tensor in in_8_bits]

    card = (bundle / "README.md").read_text()
    assert "| **this model, greedy** | 41.2 | 60.5 |" in card
    assert "| **this model, beam of 4, length penalty 0.5** | 41.2 | 60.5 |" in card
    assert "| a \\| b | c | d |" in card
    assert "| The cat. | Die Katze. |" in card
    assert "| some | MIT | some 1.0 | 4 |" in card


def test_a_run_without_its_pieces_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "pieces.model").unlink()
    assert main(["translate", str(run / "best.safetensors"), "--to", str(tmp_path)]) == 1
    assert f"nothing was written: {run / 'pieces.model'} is missing" in capsys.readouterr().err

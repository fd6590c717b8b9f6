"""A language model becomes a bundle that the server loads, and whose steps agree with PyTorch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from export.__main__ import main
from models.language_model import LanguageModelConfig, random_language_model
from service.repository.bundle import load_bundle
from tests.reference import ReferenceSession


def export(repository: Path) -> Path:
    """Exports a language model of random weights. Returns the bundle's folder."""
    sizes = ["--hidden", "12", "--layers", "2", "--vocabulary", "9", "--seed", "3"]
    assert main(["random-lm", "--name", "lm-tiny", "--to", str(repository), *sizes]) == 0
    return repository / "lm-tiny" / "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("repository"))


def test_a_random_language_model_becomes_a_bundle_that_steps_as_pytorch_does(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.encoder is None
    assert bundle.target_vocabulary is not None
    assert bundle.target_vocabulary.names == tuple(f"t{index}" for index in range(9))
    assert bundle.state_size_bytes == 2 * 2 * 12 * 4

    model = random_language_model(LanguageModelConfig(9, 12, 12, 2), seed=3)
    tokens = [1, 8, 0, 3]
    zeros = torch.zeros(2, 1, 12)
    with torch.no_grad():
        logits, _, _ = model(torch.tensor([tokens]), None, zeros, zeros)
    served = ReferenceSession(folder)
    assert np.allclose([served.step(token) for token in tokens], logits[0].numpy(), atol=1e-6)


def test_the_same_seed_gives_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    again = export(tmp_path)
    for file in ("step.onnx", "manifest.json"):
        assert (folder / file).read_bytes() == (again / file).read_bytes()

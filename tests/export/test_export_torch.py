"""Users' modules with PyTorch's own recurrent layers become bundles that return what the module returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import Tensor, nn

from export.__main__ import main
from export.bundle import Contents
from export.errors import ExportError, SizeError
from export.torch_model import TorchModel, write_module
from export.vocabulary import Vocabulary
from service.repository.bundle import load_bundle
from service.repository.manifest import SpecialTokens
from tests.reference import ReferenceSession

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LETTERS = Vocabulary(tuple("abcdefghijkl"), "characters")
SIZE, FEATURES = 10, 3


class Reader(nn.Module):
    """A user's language model in training mode, with its own layer norm."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 7)
        self.rnn = kind(7, SIZE, **options)
        self.norm = nn.LayerNorm(options.get("proj_size", 0) or SIZE)
        self.last = nn.Linear(self.norm.normalized_shape[0], 12)

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        inputs = self.embedding(tokens)
        is_lstm = isinstance(self.rnn, nn.LSTM)
        if not self.rnn.batch_first:
            inputs = inputs.transpose(0, 1)
        outputs, carried = self.rnn(inputs, states if is_lstm else states[0])
        if not self.rnn.batch_first:
            outputs = outputs.transpose(0, 1)
        logits = self.last(torch.relu(self.norm(outputs)))
        return (logits, *carried) if is_lstm else (logits, carried)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(12, SIZE)

    def forward(self, source: Tensor) -> Tensor:
        _, last = self.rnn(source)  # [2 * 2, B, 6]
        found: Tensor = torch.tanh(self.bridge(torch.cat([last[-2], last[-1]], dim=-1))).unsqueeze(0)
        return found


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, SIZE, nonlinearity="relu", batch_first=True)
        self.last = nn.Linear(SIZE, FEATURES)

    def forward(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        outputs, hidden = self.rnn(features, hidden)
        return self.last(outputs), hidden


class Peeking(Decoder):
    """Its steps depend on later steps."""

    def forward(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        outputs, hidden = super().forward(features, hidden)
        return outputs + outputs.mean(dim=1, keepdim=True), hidden


class OverFeatures(Decoder):
    """Reads a step's features one by one with a layer of its own, which begins at zero in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(1, FEATURES, batch_first=True)

    def forward(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        _, last = self.inner(features[:, 0].unsqueeze(2))
        return super().forward(last.transpose(0, 1), hidden)


MODULES: dict[str, tuple[type[nn.RNNBase], dict[str, Any], int]] = {
    # name: the layer, its options, the last axis of its hidden state
    "two layers of LSTM, batch first, without biases, with dropout": (
        nn.LSTM,
        {"num_layers": 2, "batch_first": True, "bias": False, "dropout": 0.5},
        SIZE,
    ),
    "an LSTM, time first": (nn.LSTM, {}, SIZE),
    "a projected LSTM": (nn.LSTM, {"proj_size": 4, "num_layers": 2}, 4),
    "two layers of GRU without biases": (nn.GRU, {"num_layers": 2, "batch_first": True, "bias": False}, SIZE),
    "an RNN of relu": (nn.RNN, {"nonlinearity": "relu"}, SIZE),
}


def _describe(case: str) -> TorchModel:
    kind, options, hidden_size = MODULES[case]
    layers = options.get("num_layers", 1)
    states = {"hidden": (layers, "batch", hidden_size)}
    if kind is nn.LSTM:
        states["cell"] = (layers, "batch", SIZE)
    return TorchModel(Reader(kind, **options), states, vocabulary=LETTERS, special_tokens=SpecialTokens())  # type: ignore[arg-type]


def _write(model: TorchModel, to: Path) -> Path:
    return write_module(model, to=to, name="mine", description=model.description, evaluation={})


@pytest.mark.parametrize("case", MODULES)
def test_a_module_becomes_a_bundle_with_the_modules_results(tmp_path: Path, case: str) -> None:
    """Steps from the module's own states agree within single precision, and the gates can be traced."""
    model = _describe(case)
    folder = _write(model, tmp_path)
    manifest = load_bundle(folder).manifest
    assert manifest.trace is not None
    module = model.module.eval()
    states = [torch.zeros([1 if axis == "batch" else int(axis) for axis in shape]) for shape in model.states.values()]
    session = ReferenceSession(folder)
    with torch.no_grad():
        for token in (3, 1, 11, 0, 7):
            logits, *states = module(torch.tensor([[token]]), *states)
            np.testing.assert_allclose(session.step(token), logits[0, 0].numpy(), atol=1e-5)


def test_an_encoder_and_a_decoder_of_numbers_forecast_as_they_do(tmp_path: Path) -> None:
    """The encoder is bidirectional and reads sources of any length. The decoder's values are fed back."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    model = TorchModel(
        decoder,
        {"hidden": (1, "batch", SIZE)},
        feature_size=FEATURES,
        value_size=FEATURES,
        feeds_back=True,
        encoder=encoder,
        source_feature_size=FEATURES,
        start="last_of_source",
    )
    folder = _write(model, tmp_path)
    source = np.random.default_rng(0).standard_normal((13, FEATURES)).astype(np.float32)
    found = np.array(ReferenceSession(folder, list(source)).forecast(6))
    with torch.no_grad():
        value, hidden = torch.from_numpy(source[np.newaxis, -1:]), encoder(torch.from_numpy(source[np.newaxis]))
        for step in range(6):
            value, hidden = decoder(value, hidden)
            np.testing.assert_allclose(found[step], value[0, 0].numpy(), atol=1e-5)


def test_a_module_without_a_trace_graph_is_written_and_the_notes_say_why(tmp_path: Path) -> None:
    """The same holds for a file of another exporter: a bundle is served without a trace graph."""
    torch.manual_seed(0)
    shapes = {"hidden": (1, "batch", SIZE)}
    model = TorchModel(OverFeatures(), shapes, feature_size=FEATURES, value_size=FEATURES, one_step=True)  # type: ignore[arg-type]
    notes: list[str] = []
    folder = write_module(model, notes=notes, to=tmp_path, name="mine", description="", evaluation={})
    assert load_bundle(folder).manifest.trace is None
    assert notes[-1].startswith("it has no trace graph: ")


def test_a_module_whose_steps_see_later_ones_is_refused(tmp_path: Path) -> None:
    """Its results depend on the number of steps in a call, so it could not be served step by step."""
    torch.manual_seed(0)
    model = TorchModel(Peeking(), {"hidden": (1, "batch", SIZE)}, feature_size=FEATURES, value_size=FEATURES)
    with pytest.raises(ExportError, match="Peeking: the output differs by up to"):
        _write(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "reads tokens or features: give it a vocabulary or a feature_size"),
        ({"feature_size": 3, "vocabulary": LETTERS}, "reads tokens or features"),
        ({"feature_size": 3}, "of features returns values or logits over tags"),
        (
            {"feature_size": 3, "value_size": 2, "tags": LETTERS},
            "returns logits or values: give it tags or a value_size",
        ),
        (
            {"feature_size": 3, "value_size": 3, "states": {}},
            "needs a state: give the shape of each by name",
        ),
        ({"feature_size": 3, "value_size": 3, "source_feature_size": 2}, "an encoder needs a source_vocabulary"),
        ({"feature_size": -2, "value_size": 3}, "^feature_size = -2: expected an integer, 1 or more"),
        ({"feature_size": 3, "value_size": -1}, "^value_size = -1: expected an integer, 1 or more"),
        (
            {"feature_size": 3, "value_size": 3, "source_feature_size": -2},
            "^source_feature_size = -2: expected an integer, 1 or more",
        ),
        (
            {"feature_size": 3, "value_size": 3, "max_source_length": 0},
            "^max_source_length = 0: expected an integer, 1 or more$",
        ),
        *(
            (
                {"feature_size": 3, "value_size": 3, "states": {"hidden": (1, "batch", axis)}},
                rf"^state hidden: axis 2 of its shape .* is {axis!r}: expected an integer, 1 or more$",
            )
            for axis in (-8, 0, "rows")
        ),
        (
            {"feature_size": 3, "value_size": 3, "contexts": {"memory": ("batch", "source", 0)}},
            r"^context memory: axis 2 of its shape \('batch', 'source', 0\) is 0: expected an integer, 1 or more$",
        ),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    states = fields.pop("states", {"hidden": (1, "batch", SIZE)})
    with pytest.raises(ExportError, match=message):
        _write(TorchModel(Decoder(), states, **fields), tmp_path)


def test_a_bundle_that_is_too_large_is_not_tried_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(contents: Contents, **options: Any) -> Path:
        tried.append(contents.interface.step.max_chunk)
        raise SizeError("it is too large")

    monkeypatch.setattr("export.torch_model.write_bundle", refuse)
    model = TorchModel(Decoder(), {"hidden": (1, "batch", SIZE)}, feature_size=FEATURES, value_size=FEATURES)
    with pytest.raises(SizeError, match=r"^it is too large$"):
        _write(model, tmp_path)
    assert tried == [None]


FACTORY = """
from torch import nn
from export.torch_model import TorchModel

class Smoother(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 6, batch_first=True)
        self.last = nn.Linear(6, 2)

    def forward(self, features, hidden):
        outputs, hidden = self.rnn(features, hidden)
        return self.last(outputs), hidden

def make():
    return TorchModel(Smoother(), {"hidden": (1, "batch", 6)}, "Smooths", feature_size=2, value_size=2, feeds_back=True)

def wrong():
    return 5
"""


def test_the_command_finds_a_factory_in_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "somebodys.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert main(["torch", "somebodys:make", "--name", "smoother", "--to", "repository"]) == 0
    assert load_bundle(tmp_path / "repository" / "smoother" / "1").manifest.description == "Smooths"
    for place, message in (
        ("somebodys", "must be MODULE:FACTORY"),
        ("nobodys:make", "nobodys:make cannot be found: No module named 'nobodys'"),
        ("no.bodys:make", "no.bodys:make cannot be found: No module named 'no'"),
        ("somebodys:nothing", "somebodys:nothing cannot be found: somebodys ("),
        ("somebodys:wrong", "returned a int: it must return an export.torch_model.TorchModel"),
    ):
        assert main(["torch", place, "--name", "other", "--to", "repository"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import nobodys", "an import in it failed: No module named 'nobodys'"),
        ("from export import nothing", "an import in it failed: cannot import name 'nothing' from 'export' ("),
    ],
)
def test_a_module_whose_own_import_fails_is_not_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], statement: str, reason: str
) -> None:
    (tmp_path / "importer.py").write_text(statement)
    monkeypatch.chdir(tmp_path)
    assert main(["torch", "importer:make", "--name", "other", "--to", "repository"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nothing was written: importer:make exists, but {reason}")
    assert "cannot be found" not in said
    assert "installed server" not in said

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
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from export.__main__ import main
from export.bundle import Contents
from export.errors import ExportError, SizeError
from export.exportable import WithLengths
from export.plain_layers import plain
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
    "two layers of GRU": (nn.GRU, {"num_layers": 2, "batch_first": True}, SIZE),
    "a GRU without biases": (nn.GRU, {"bias": False}, SIZE),
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
    with pytest.raises(SizeError, match="^it is too large$"):
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


class Gated(nn.LSTM):
    """A user's variant, with its own `forward`."""

    def forward(self, inputs: Tensor, states: Any = None) -> Any:  # type: ignore[override]  # as users do
        outputs, carried = super().forward(inputs, states)
        return torch.tanh(outputs), carried


class Renamed(nn.LSTM):
    """A subclass that differs only in its name."""


class OverVectors(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, (hidden, cell) = self.rnn(inputs, (hidden, cell))
        return outputs, hidden, cell


def over_vectors(rnn: nn.Module) -> TorchModel:
    return TorchModel(
        OverVectors(rnn),
        states={"hidden": (1, "batch", SIZE), "cell": (1, "batch", SIZE)},
        feature_size=FEATURES,
        value_size=SIZE,
    )


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda rnn: weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: spectral_norm(rnn, "weight_hh_l0"),
        lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: parametrizations.orthogonal(rnn, "weight_hh_l0"),
    ],
    ids=["weight_norm", "spectral_norm", "parametrized", "orthogonal"],
)
def test_weights_that_are_computed_before_each_run_are_served(change: Callable[[nn.Module], nn.Module]) -> None:
    """The module that is exported has the results of the user's module, with weights that are no longer computed."""
    torch.manual_seed(0)
    notes: list[str] = []
    module = over_vectors(change(nn.LSTM(FEATURES, SIZE, batch_first=True)).eval()).module
    inputs, zeros = torch.randn(1, 1, FEATURES), torch.zeros(1, 1, SIZE)
    with torch.no_grad():
        expected = module(inputs, zeros, zeros)
    exported = WithLengths(plain(module, notes))
    assert notes == ["weight_hh_l0 of rnn keeps its current value"]
    assert "module.rnn.weight_hh_l0" in dict(exported.named_parameters())
    with torch.no_grad():
        found = exported(inputs, torch.tensor([1]), zeros, zeros)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm:FutureWarning")
def test_a_layer_with_a_forward_of_its_own_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A subclass without one is served, also when its weights are computed before each run."""
    options: Any = {"to": tmp_path, "name": "own", "description": "", "evaluation": {}}
    with pytest.raises(ExportError, match=r"^rnn is a Gated, a subclass of nn\.LSTM with its own forward"):
        write_module(over_vectors(Gated(FEATURES, SIZE, batch_first=True)), **options)
    torch.manual_seed(0)
    model = over_vectors(parametrizations.orthogonal(Renamed(FEATURES, SIZE, batch_first=True), "weight_hh_l0").eval())
    inputs, zeros = torch.randn(1, 1, FEATURES), torch.zeros(1, 1, SIZE)
    with torch.no_grad():
        expected = model.module(inputs, zeros, zeros)[0][0, 0].numpy()
    notes: list[str] = []
    folder = write_module(model, notes=notes, **options)
    assert "weight_hh_l0 of rnn keeps its current value" in notes
    assert np.allclose(ReferenceSession(folder).step(inputs[0, 0].numpy()), expected, atol=1e-5)

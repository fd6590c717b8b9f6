"""Every cell of the family, exported: ONNX Runtime returns what the equations give, in single steps and in chunks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from tests.services import local_service

pytest.importorskip("torch")

import numpy as np
import onnxruntime
import torch

from carousel import AsyncClient
from export.bundle import Contents, Vocabularies, write_bundle, write_forecaster, write_seq2seq, write_tagger
from export.interface import language_model_interface
from export.vocabulary import Vocabulary
from models.attention import AttentionKind
from models.forecaster import Forecaster, ForecasterConfig
from models.language_model import LanguageModel, LanguageModelConfig, random_language_model
from models.recurrent import CellKind, RecurrentLayer
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.tagger import Tagger, TaggerConfig
from models.token_stack import TokenReadout
from service.repository import vocabulary as served
from service.repository.bundle import load_bundle
from service.repository.manifest import FILE_NAME, Manifest, SpecialTokens
from tests.models import numpy_cells
from tests.reference import ReferenceSession

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LETTERS = tuple("abcdefghijk")
B, T = 4, 9


WITH_READOUT: tuple[CellKind, ...] = ("gru", "lstm", "lstm-projected")
"""Cells whose model has a readout: an operator with one state, an operator with two, and a `Scan`."""


def config_of(kind: CellKind) -> LanguageModelConfig:
    # two layers of a `Scan` are a module in test_export_torch.py
    layers, projection = 2 if kind in ("gru", "lstm") else 1, 5 if kind == "lstm-projected" else 0
    return LanguageModelConfig(len(LETTERS), 6, 10, num_layers=layers, cell=kind, projection_size=projection)


@pytest.fixture(scope="module", params=get_args(CellKind))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Path]:
    """Returns a language model of each cell, and its bundle, which was proven when it was written."""
    model = random_language_model(config_of(request.param), seed=3).eval()
    contents = Contents(
        interface=language_model_interface(model.config),
        step=model,
        readout=TokenReadout(model).eval() if request.param in WITH_READOUT else None,
        vocabularies=Vocabularies(target=Vocabulary(LETTERS, "characters")),
    )
    folder = write_bundle(
        contents,
        to=tmp_path_factory.mktemp("repository"),
        name=request.param,
        description="A model of random weights",
    )
    return model, folder


def reference(model: LanguageModel, tokens: list[int]) -> tuple[list[dict[str, numpy_cells.Array]], numpy_cells.Array]:
    """Computes in plain NumPy the gates of every layer at every step, by their names in the trace, and the logits, [T,
    V]."""
    cells = [layer.cell() for layer in model.stack.layers if isinstance(layer, RecurrentLayer)]
    states = [[np.zeros((1, size)) for size in cell.state_sizes] for cell in cells]
    reported, logits = [], []
    for token in tokens:
        shown: numpy_cells.Array = model.embedding.weight.detach().double().numpy()[[token]]
        step: dict[str, numpy_cells.Array] = {}
        for layer, cell in enumerate(cells):
            found = numpy_cells.gates(cell, shown, *states[layer])
            states[layer] = [found[name] for name in cell.state_names]
            shown = found["hidden"]
            step |= {f"layer{layer}.{name}": value[0] for name, value in found.items()}
        weight, bias = (one.detach().double().numpy() for one in (model.projection.weight, model.projection.bias))
        logits.append((shown @ weight.T + bias)[0])
        reported.append(step)
    return reported, np.array(logits)


def test_the_graph_agrees_with_the_equations(exported: tuple[LanguageModel, Path]) -> None:
    """One chunk and single steps have the same bits."""
    model, folder = exported
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    session = onnxruntime.InferenceSession(str(folder / "step.onnx"))
    tokens = np.random.default_rng(0).integers(0, len(LETTERS), T)
    _, expected = reference(model, tokens.tolist())
    states = {
        one.input.name: np.zeros([1 if axis == "batch" else int(axis) for axis in one.input.shape], np.float32)
        for one in manifest.states
    }
    chunk = session.run(["logits"], {"tokens": tokens[np.newaxis], "lengths": np.array([T]), **states})[0][0]
    np.testing.assert_allclose(chunk, expected, atol=1e-5)
    for step, token in enumerate(tokens):
        names = ["logits", *(one.output for one in manifest.states)]
        logits, *after = session.run(names, {"tokens": np.array([[token]]), "lengths": np.array([1]), **states})
        states = {one.input.name: value for one, value in zip(manifest.states, after, strict=True)}
        assert logits[0, 0].tobytes() == chunk[step].tobytes()


def test_a_graph_says_nothing_of_the_machine_that_made_it(exported: tuple[LanguageModel, Path]) -> None:
    """Not even the bodies of loops hold file names or stack traces."""
    for file in exported[1].glob("*.onnx"):
        assert not [word for word in (b".py", b"site-packages", b"stack_trace") if word in file.read_bytes()], file


def test_the_trace_has_the_gates_of_the_equations(exported: tuple[LanguageModel, Path]) -> None:
    """The trace contains every gate and every state of every layer, at every step."""
    model, folder = exported
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    assert manifest.trace is not None
    assert bundle.trace is not None
    assert (folder / "trace.onnx").stat().st_size < 60_000
    tokens = np.random.default_rng(1).integers(0, len(LETTERS), T).tolist()
    reported, _ = reference(model, tokens)
    names = {output.name: output.tensor.name for output in manifest.trace.outputs}
    assert set(names) == set(reported[0])
    states = {
        one.input.name: np.zeros([1 if axis == "batch" else int(axis) for axis in one.input.shape], np.float32)
        for one in manifest.states
    }
    wanted = {node.name for node in bundle.trace.get_inputs()}
    for token, expected in zip(tokens, reported, strict=True):
        feeds = {"tokens": np.array([[token]]), "lengths": np.array([1]), **states}
        found = bundle.trace.run(list(names.values()), {name: feeds[name] for name in wanted})
        for name, value in zip(names, found, strict=True):
            np.testing.assert_allclose(value[0, 0], expected[name], atol=1e-5, err_msg=name)
        after = bundle.step.run([one.output for one in manifest.states], feeds)
        states = {one.input.name: value for one, value in zip(manifest.states, after, strict=True)}


async def test_it_is_served_with_its_state(exported: tuple[LanguageModel, Path]) -> None:
    """Many sessions at once, with chunks of different sizes, have the bits of a plain loop. Generations continue from
    there."""
    _, folder = exported
    generator = np.random.default_rng(5)
    fed = generator.integers(0, len(LETTERS), (16, 30)).tolist()

    async def run(client: AsyncClient, number: int) -> None:
        reference = ReferenceSession(folder)
        expected = [reference.step(token).tobytes() for token in fed[number]]
        async with client.session(folder.parent.name) as session:
            found: list[bytes] = []
            while len(found) < len(expected):
                chunk = fed[number][len(found) : len(found) + 1 + (len(found) + number) % 6]
                step = await session.feed(chunk, logits=True, every_position=True)
                found += [np.array(output.logits, np.float32).tobytes() for output in step.outputs]
            assert found == expected
            generated = [token.id async for token in session.generate(max_tokens=8)]
        assert generated == reference.generate(8)

    with local_service(folder.parents[1]) as service:
        async with AsyncClient(service.target) as client:
            await asyncio.gather(*(run(client, number) for number in range(len(fed))))


@pytest.mark.parametrize(("kind", "attention"), [("lstm-coupled", "none")])
def test_an_encoder_decoder_of_any_cell_and_attention_becomes_a_proven_bundle(
    tmp_path: Path, kind: CellKind, attention: AttentionKind
) -> None:
    """Bidirectional layers of the cell read the source."""
    folder = _write_seq2seq(tmp_path, Seq2SeqConfig(6, 7, 8, 10, 8, cell=kind, attention=attention))
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    assert [context.name for context in manifest.contexts] == ([] if attention == "none" else ["memory", "memory_mask"])
    assert manifest.trace is not None
    assert ("attention" in [output.name for output in manifest.trace.outputs]) == (attention != "none")


def test_attention_over_any_padding_is_a_distribution(tmp_path: Path) -> None:
    """With Bahdanau attention, a padded row has the result of the row alone."""
    model = _seq2seq(Seq2SeqConfig(6, 7, 8, 10, 8, attention="bahdanau"))
    source, lengths = torch.tensor([[1, 2, 3, 4], [5, 1, 0, 0]]), torch.tensor([4, 2])
    with torch.no_grad():
        together = model(source, lengths, torch.tensor([[1, 3], [1, 3]]))
        alone = model(source[1:, :2], None, torch.tensor([[1, 3]]))
    torch.testing.assert_close(together[1:], alone)


def test_a_tagger_becomes_a_proven_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = write_tagger(
        Tagger(TaggerConfig(len(LETTERS), 3, 6, 10, cell="gru")),
        to=tmp_path,
        name="tagger",
        description="A tagger of random weights",
        vocabulary=Vocabulary(LETTERS, "characters"),
        tags=Vocabulary(("x", "y", "z"), "whitespace"),
        evaluation={},
    )
    bundle = load_bundle(folder)
    assert bundle.step_vocabulary is not None
    assert bundle.target_vocabulary is not None
    assert (len(bundle.step_vocabulary), len(bundle.target_vocabulary)) == (len(LETTERS), 3)
    assert not bundle.manifest.can_generate


@pytest.mark.parametrize("kind", ["lstm-peephole"])
def test_a_forecaster_of_several_features_becomes_a_proven_bundle(tmp_path: Path, kind: CellKind) -> None:
    torch.manual_seed(0)
    folder = write_forecaster(
        Forecaster(ForecasterConfig(feature_size=3, hidden_size=10, num_layers=1, cell=kind)),
        to=tmp_path,
        name="forecaster",
        description="A forecaster of random weights",
        evaluation={},
    )
    manifest = load_bundle(folder).manifest
    assert (manifest.step.feature_size, manifest.step.value_size, manifest.can_generate) == (3, 3, True)
    assert manifest.states[-1].name == "level"


def test_a_vocabulary_of_any_characters_is_read_back_as_it_was(tmp_path: Path) -> None:
    """This includes line feeds, tabs, backslashes and line separators."""
    tokens = ("<unk>", "\n", " ", "\t", "\\", "\r", "\u2028", "\x85", "a", "\\n")
    written = Vocabulary(tokens, "characters", unknown_id=0)
    for name, content in written.files("target.txt").items():
        (tmp_path / name).write_bytes(content)
    vocabulary = served.Vocabulary.load(tmp_path / "target.txt", written.spec("target.txt"), owner="the vocabulary")
    assert vocabulary.names == tokens
    assert vocabulary.ids_of_text("a\n\\é", field="text") == [8, 1, 4, 0]


def _seq2seq(config: Seq2SeqConfig) -> Seq2Seq:
    torch.manual_seed(0)
    return Seq2Seq(config).eval()


def _write_seq2seq(to: Path, config: Seq2SeqConfig) -> Path:
    return write_seq2seq(
        _seq2seq(config),
        to=to,
        name="seq2seq",
        description="A model of random weights",
        source=Vocabulary(("<pad>", *"abcde"), "characters"),
        target=Vocabulary(("<pad>", "<s>", "</s>", *"ABCD"), "characters"),
        special_tokens=SpecialTokens(bos_id=1, eos_id=2),
        max_source_length=24,
        evaluation={},
    )

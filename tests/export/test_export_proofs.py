"""The proofs detect wrong values, and bits that depend on other rows, on padding or on chunks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from torch import Tensor, nn

from export.errors import BatchError, ExportError
from export.graphs import Graphs, export_graphs
from export.interface import Interface, seq2seq_interface
from export.proofs import tolerances
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.proof import check_signature, prove
from export.proofs.runners import Array, IntArray, OnnxRunner
from export.proofs.walks import draw_rows
from models.recurrent import RecurrentLayer
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import Parity, StateSpec, StepSpec, TensorSpec
from tests.export.tiny_seq2seq import CONFIG, MAX_SOURCE_LENGTH, tiny_bundle, tiny_model

INTERFACE = seq2seq_interface(CONFIG, max_source_length=MAX_SOURCE_LENGTH)


class LanguageModel(nn.Module):
    """A model without encoder and context, whose state starts at zero: the other kind that an interface can
    describe."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.layer = RecurrentLayer("lstm", 4, 8)
        self.logits = nn.Linear(8, 9)

    def forward(self, tokens: Tensor, lengths: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, hidden, cell = self.layer(self.embedding(tokens).transpose(0, 1), lengths, hidden, cell)
        return self.logits(outputs).transpose(0, 1), hidden, cell


class FaultyRunner:
    """Runs the true graphs and adds a fault to their results."""

    float_dtype: type[np.floating] = np.float32

    def __init__(
        self,
        graphs: OnnxRunner,
        *,
        encode: Callable[[IntArray, list[Array]], None] | None = None,
        step: Callable[[IntArray, Sequence[Array], list[Array]], None] | None = None,
        readout: Callable[[Array], None] | None = None,
    ) -> None:
        self._graphs, self._encode, self._step, self._readout = graphs, encode, step, readout

    def encode(self, source: IntArray, lengths: IntArray) -> list[Array]:
        outputs = [array.copy() for array in self._graphs.encode(source, lengths)]
        if self._encode:
            self._encode(source, outputs)
        return outputs

    def step(self, tokens: IntArray, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        outputs = [array.copy() for array in self._graphs.step(tokens, lengths, carried)]
        if self._step:
            self._step(tokens, carried, outputs)
        return outputs

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        logits = self._graphs.read_out(carried)
        if logits is None or self._readout is None:
            return logits
        logits = logits.copy()
        self._readout(logits)
        return logits


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    """Returns a tiny model in evaluation mode."""
    return tiny_model().eval()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Returns the model's graphs."""
    bundle = tiny_bundle(tmp_path_factory)
    step, encoder, readout = ((bundle / f"{name}.onnx").read_bytes() for name in ("step", "encoder", "readout"))
    return Graphs(step=step, encoder=encoder, readout=readout)


def test_a_weight_that_changed_after_the_export_is_found(model: Seq2Seq, graphs: Graphs) -> None:
    """The graphs are compared with the modules as they are now. The message names the tensor and the difference."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.encoder.memory.weight[0, 0] += 0.5
    with pytest.raises(
        ExportError, match=r"^memory is off by 0\.\d+ from PyTorch, .* run step by step in a batch of 1$"
    ):
        prove(graphs, INTERFACE, changed.decoder, changed.encoder)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.decoder.logits.bias[3] += 1e-3
    with pytest.raises(ExportError, match=r"^logits is off by 0\.001 from PyTorch"):
        prove(graphs, INTERFACE, changed.decoder, changed.encoder)


def test_a_value_that_is_not_finite_is_found(model: Seq2Seq, graphs: Graphs) -> None:
    """NaN is never within a tolerance."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.decoder.logits.bias[3] = float("nan")
    with pytest.raises(ExportError, match="logits is off by inf"):
        prove(graphs, INTERFACE, changed.decoder, changed.encoder)


def _leak_of_company(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    outputs[0] += np.float32(1e-6) * np.float32(len(tokens) - 1)


def _leak_of_place(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    outputs[1] += np.float32(1e-6) * np.arange(len(tokens), dtype=np.float32)[:, None]


def _leak_of_chunk(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    outputs[2] += np.float32(1e-6) * np.float32(tokens.shape[1] - 1)


def _leak_of_padding(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    outputs[0] += np.float32(1e-6) * np.float32(carried[2].shape[1] // 80)


def _leak_into_a_head(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    if len(tokens) > 1:
        outputs[4] += np.float32(1e-6)


def _leak_of_nan(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
    if np.isnan(carried[0]).any():
        outputs[0][:] = np.nan


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            _leak_of_company,
            r"^logits of a row .* in a batch of 6, in one chunk: .* values differ from the row alone, by up to",
        ),
        (_leak_of_place, r"^next_hidden of a row .* in a batch of"),
        (_leak_of_chunk, r"^next_cell of a row .* alone, in one chunk instead of step by step"),
        (_leak_of_padding, r"^logits of a row .* its source padded to (8|9)\d"),
        (_leak_into_a_head, r"^top_log_probabilities of a row .* in a batch of 6, in one chunk"),
        (_leak_of_nan, r"^logits of a row .* beside rows of NaN, infinity and 1e30.* by up to inf"),
    ],
)
def test_bits_that_depend_on_other_rows_padding_or_chunks_are_found(
    graphs: Graphs, fault: Callable[[IntArray, Sequence[Array], list[Array]], None], message: str
) -> None:
    """Each fault has a size of a millionth. The case that is made for it detects it and names it."""
    with pytest.raises(ExportError, match=message) as refused:
        check_invariance(FaultyRunner(OnnxRunner(graphs, INTERFACE), step=fault), INTERFACE)
    assert isinstance(refused.value, BatchError) == (fault is not _leak_of_chunk)


def _next_token_of_another(outputs: list[Array]) -> None:
    outputs[3] += 1


def _top_token_of_another(outputs: list[Array]) -> None:
    outputs[5][..., 1] = outputs[5][..., 0]


def _log_probability_too_high(outputs: list[Array]) -> None:
    outputs[4] += np.float32(1e-3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_next_token_of_another, "next_token is not the token of the highest logit"),
        (_top_token_of_another, "top_token_ids are not the tokens of the highest logits, best first"),
        (_log_probability_too_high, "top_log_probabilities are not the log-probabilities of the logits"),
    ],
)
def test_a_head_that_disagrees_with_the_logits_is_found(
    graphs: Graphs, fault: Callable[[list[Array]], None], message: str
) -> None:
    runner = FaultyRunner(OnnxRunner(graphs, INTERFACE), step=lambda tokens, carried, outputs: fault(outputs))
    with pytest.raises(ExportError, match=f"^{message}$"):
        check_invariance(runner, INTERFACE)


def test_a_readout_that_is_not_the_steps_own_logits_is_found(graphs: Graphs) -> None:
    """A difference of one bit is enough."""

    def fault(logits: Array) -> None:
        logits[:, 3] = np.nextafter(logits[:, 3], np.float32(9))

    with pytest.raises(ExportError, match=r"^the readout differs from the logits of the step before it by"):
        check_invariance(FaultyRunner(OnnxRunner(graphs, INTERFACE), readout=fault), INTERFACE)


def test_a_context_that_is_not_zero_where_padded_is_found(graphs: Graphs) -> None:
    """The server pads contexts with zeros, so the encoder must too."""

    def fault(source: IntArray, outputs: list[Array]) -> None:
        outputs[0][source == 0] = 1e-6

    with pytest.raises(ExportError, match=r"memory is not zero past a source of \d+ tokens"):
        check_invariance(FaultyRunner(OnnxRunner(graphs, INTERFACE), encode=fault), INTERFACE)


@pytest.mark.parametrize(("column", "fault", "is_found"), [(0, 0.3, False), (0, 30.0, True), (1, 2e-3, True)])
def test_large_values_may_be_off_by_their_rounding_and_small_ones_may_not(
    graphs: Graphs, column: int, fault: float, is_found: bool
) -> None:
    """The first logit of each step is about 100,000. The fault is added to the first or to the second."""

    def scaled(fault: float) -> FaultyRunner:
        def change(tokens: IntArray, carried: Sequence[Array], outputs: list[Array]) -> None:
            outputs[0][..., 0] = 100_000.0 + outputs[0][..., 0]
            outputs[0][..., column] += fault

        return FaultyRunner(OnnxRunner(graphs, INTERFACE), step=change)

    def measure() -> Parity:
        return measure_parity(scaled(fault), scaled(0.0), INTERFACE, relative=tolerances.RELATIVE)

    if is_found:
        with pytest.raises(ExportError, match=r"^logits is off by"):
            measure()
    else:
        parity = measure()
        assert 0.25 < parity.max_abs_error["logits"] < parity.tolerance < 1.1


def test_true_graphs_pass(model: Seq2Seq, graphs: Graphs) -> None:
    """Without a fault, the graphs pass. A second proof has the same figures."""
    assert prove(graphs, INTERFACE, model.decoder, model.encoder) == prove(
        graphs, INTERFACE, model.decoder, model.encoder
    )


@pytest.mark.parametrize("least", [0, 1])
def test_a_step_reads_every_token_that_is_no_padding(least: int) -> None:
    """Token 0 is one of them unless it is padding. Sources are padded with 0, so theirs begin at 1."""
    interface = replace(INTERFACE, least_token=least)
    rows = draw_rows(interface, np.random.default_rng(0), num_rows=40, max_tokens=8)
    assert {int(token) for row in rows for token in row.tokens} == set(range(least, CONFIG.target_vocabulary_size))
    assert {int(token) for row in rows for token in row.source} == set(range(1, CONFIG.source_vocabulary_size))


def test_a_signature_that_differs_from_the_manifest_is_found(graphs: Graphs) -> None:
    """The message contains both signatures. The expected logits have another width."""
    wider = seq2seq_interface(Seq2SeqConfig(6, 8, hidden_size=16, attention_size=8), max_source_length=24)
    with pytest.raises(ExportError, match=r"step outputs are logits float32 \[batch, time, 7\], .* says .* time, 8\]"):
        check_signature(OnnxRunner(graphs, wider), wider)


def test_a_model_in_training_mode_is_refused() -> None:
    """A graph must not contain dropout."""
    with pytest.raises(ExportError, match="Encoder is in training mode"):
        export_graphs(INTERFACE, Seq2Seq(CONFIG).decoder, Seq2Seq(CONFIG).encoder)


def test_a_model_without_an_encoder_is_exported_and_proven_too() -> None:
    """A language model is only a step with states that start at zero."""
    torch.manual_seed(0)
    interface = Interface(
        step=StepSpec(
            file="step.onnx",
            tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
            lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
            logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", 9)),
        ),
        states=tuple(
            StateSpec(
                name=name, input=TensorSpec(name=name, dtype="float32", shape=(1, "batch", 8)), output=f"next_{name}"
            )
            for name in ("hidden", "cell")
        ),
        step_vocabulary_size=9,
    )
    model = LanguageModel().eval()
    graphs = export_graphs(interface, model)
    assert graphs.encoder is None
    parity = prove(graphs, interface, model)
    assert set(parity.max_abs_error) == {"logits", "next_hidden", "next_cell"}

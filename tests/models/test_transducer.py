"""The transducer's loss sums over all alignments, and its output does not depend on how the frames are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from models.transducer import Emitted, GreedyDecoder, Transducer, TransducerConfig
from models.transducer_loss import BLANK_ID, transducer_loss

SMALL = TransducerConfig(5, hidden_size=12, embedding_size=4, predictor_size=8, joined_size=10)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_the_loss_is_the_sum_over_all_alignments() -> None:
    """The rows have different lengths, and each gives the loss that it gives alone."""
    logits, targets = _lattices()
    found = transducer_loss(logits, targets)
    for loss, row, target in zip(found, logits, targets, strict=True):
        ways = _alignments(len(row), target.tolist())
        scores = torch.stack([_score(row.log_softmax(dim=-1), way) for way in ways])
        torch.testing.assert_close(loss, -scores.logsumexp(dim=0))


def test_all_targets_together_are_certain() -> None:
    """If a target has at most two tokens, the probabilities of all targets sum to 1."""
    targets = [[], *([a] for a in (1, 2)), *([a, b] for a in (1, 2) for b in (1, 2))]
    logits = torch.randn(1, 3, 3, dtype=torch.float64)
    logits[:, -1, 1:] = -torch.inf
    losses = transducer_loss(
        [logits[:, : len(target) + 1] for target in targets], [torch.tensor(target).long() for target in targets]
    )
    torch.testing.assert_close(losses.neg().exp().sum().item(), 1.0)


def test_the_gradient_is_that_of_the_loss() -> None:
    logits, targets = _lattices()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *given: (transducer_loss(given, targets) * weights).sum(), [row.requires_grad_() for row in logits]
    )


def test_a_long_lattice_stays_finite() -> None:
    """The loss and its gradient stay finite in single precision, with the large logits of a confident model."""
    logits = [(30.0 * torch.randn(*shape, 20)).requires_grad_() for shape in ((400, 41), (350, 32))]
    losses = transducer_loss(logits, [torch.randint(1, 20, (length,)) for length in (40, 31)])
    torch.autograd.backward(losses.sum())
    assert losses.isfinite().all()
    for row in logits:
        assert row.grad is not None
        assert row.grad.isfinite().all()
        torch.testing.assert_close(row.grad.sum(dim=-1), torch.zeros(row.shape[:2]), atol=1e-4, rtol=0.0)


def test_chunks_give_the_outputs_of_the_whole() -> None:
    """In chunks, the encoder gives the same outputs, and the decoder emits the same tokens after the same frames."""
    model = _talkative()
    frames = 0.3 * torch.randn(3, 17, 320)
    whole, *_ = model.encoder(frames, *model.encoder.stack.zeros(3))
    states = model.encoder.stack.zeros(3)
    decoder = GreedyDecoder(model, 3)
    emitted: list[list[Emitted]] = [[], [], []]
    for chunk in torch.split(frames, [1, 5, 1, 7, 3], dim=1):
        encoded, *states = model.encoder(chunk, *states)
        torch.testing.assert_close(encoded, whole[:, : encoded.shape[1]])
        whole = whole[:, encoded.shape[1] :]
        for row, more in enumerate(decoder.feed(chunk)):
            emitted[row] += more
    assert emitted == GreedyDecoder(model, 3).feed(frames)
    assert any(emitted)


def test_rows_of_different_lengths_emit_what_they_emit_alone() -> None:
    model = _talkative()
    frames = 0.3 * torch.randn(3, 12, 320)
    together = GreedyDecoder(model, 3).feed(frames, [12, 5, 9])
    for row, length in enumerate((12, 5, 9)):
        assert GreedyDecoder(model, 1).feed(frames[row : row + 1, :length]) == [together[row]]


def test_a_frame_emits_at_most_the_allowed_tokens() -> None:
    """A joiner that never prefers the blank emits the maximum number of tokens after each frame."""
    model = Transducer(SMALL).eval()
    with torch.no_grad():
        model.joiner.projection.bias[3] = 100.0
    emitted = GreedyDecoder(model, 1, max_symbols=2).feed(torch.zeros(1, 3, 320))
    assert emitted == [[Emitted(frame, 3) for frame in (0, 0, 1, 1, 2, 2)]]


def test_it_learns_to_spell_a_few_sounds() -> None:
    """After 300 training steps on three utterances of tones, the model emits their tokens, each once."""
    model = Transducer(replace(SMALL, hidden_size=24, num_layers=1, joined_size=16))
    targets = torch.tensor([[1, 2, 3], [3, 3, 1], [2, 4, 2]])
    frames = torch.stack([torch.cat([_tone(token) for token in row]) for row in targets.tolist()])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        loss = transducer_loss(model(frames, [12, 12, 12], list(targets)), list(targets)).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    emitted = GreedyDecoder(model.eval(), 3).feed(frames)
    assert [[token for _, token in row] for row in emitted] == targets.tolist()


def _tone(token: int) -> Tensor:
    """Returns two frames of the token's tone and two of silence, [4, 320]."""
    times = torch.arange(640) / 8000
    return torch.cat([torch.sin(2 * torch.pi * (300 + 150 * token) * times), torch.zeros(640)]).reshape(4, 320)


def _talkative() -> Transducer:
    """Returns an untrained model that emits tokens after some frames and not after others."""
    model = Transducer(SMALL).eval()
    with torch.no_grad():
        model.encoder.projection.weight *= 20.0
        model.joiner.projection.weight *= 5.0
    return model


def _lattices() -> tuple[list[Tensor], list[Tensor]]:
    lengths = [(4, 3), (3, 2), (1, 2), (2, 0)]
    logits = [torch.randn(frames, tokens + 1, 5, dtype=torch.float64) for frames, tokens in lengths]
    return logits, [torch.randint(1, 5, (tokens,)) for _, tokens in lengths]


def _alignments(num_frames: int, target: list[int]) -> Iterator[list[int]]:
    """Yields all alignments of a target: its tokens with one blank for each frame, the last blank at the end."""
    if num_frames == 1:
        yield [*target, BLANK_ID]
        return
    for emitted in range(len(target) + 1):
        for rest in _alignments(num_frames - 1, target[emitted:]):
            yield [*target[:emitted], BLANK_ID, *rest]


def _score(scores: Tensor, way: list[int]) -> Tensor:
    frame = place = 0
    total = scores.new_zeros(())
    for token in way:
        total = total + scores[frame, place, token]
        if token == BLANK_ID:
            frame += 1
        else:
            place += 1
    return total

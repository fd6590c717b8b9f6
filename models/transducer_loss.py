"""The loss of a neural transducer: minus the log-probability of the target, summed over all its alignments.

Graves, "Sequence transduction with recurrent neural networks" (2012), section 2.3. An alignment is a path through a
lattice of frames and target tokens, from (0, 0) to the blank after (T - 1, U). A blank moves to the next frame, a token
to the next position of the target:

    alpha(t, u) = log(exp(alpha(t-1, u) + blank(t-1, u)) + exp(alpha(t, u-1) + token(t, u-1)))

The sums of one frame over u are one cumulative log-sum-exp, so the loop runs only over frames. The gradient is computed
from alpha and beta (equation 20), not by autograd.

Shapes: `B` batch, `T` frames, `U` longest target, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLANK_ID = 0


def transducer_loss(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Returns minus the log-probability of each row's target, in nats: [B].

    logits: for each row [T, U + 1, V], not normalised, from the joiner at every frame and every position of the row's
    target; targets: for each row [U] int64 in 1..V-1. Rows may differ in T, at least 1, and in U. Differentiable once.
    """
    loss: Tensor = _TransducerLoss.apply(targets, *logits)  # type: ignore[no-untyped-call]  # torch has no type for it
    return loss


class _TransducerLoss(torch.autograd.Function):
    """Computes the lattices of all rows together, in double precision. Tensors with a vocabulary axis are computed row
    by row, so that no time is spent on padding."""

    @staticmethod
    def forward(ctx: Any, targets: Sequence[Tensor], *logits: Tensor) -> Tensor:
        num_frames = torch.tensor([len(row) for row in logits])
        num_tokens = torch.tensor([len(target) for target in targets])
        length, longest = int(num_frames.max()), int(num_tokens.max())
        blanks = torch.zeros(len(logits), length, longest + 1, dtype=torch.double)
        tokens = torch.zeros(len(logits), length, longest, dtype=torch.double)
        totals, indices = [], []
        for row, (scores, target) in enumerate(zip(logits, targets, strict=True)):
            frames, places, _ = scores.shape
            total = scores.logsumexp(dim=-1)  # [T, U + 1]
            index = target[None, :, None].expand(frames, -1, 1)
            blanks[row, :frames, :places] = scores[..., BLANK_ID] - total
            tokens[row, :frames, : places - 1] = scores[:, :-1].gather(2, index).squeeze(2) - total[:, :-1]
            totals.append(total)
            indices.append(index)
        alpha = _forward(blanks, tokens)
        after_blank, after_token = _backward(blanks, tokens, num_frames, num_tokens)
        log_probability = (alpha + blanks)[torch.arange(len(logits)), num_frames - 1, num_tokens]
        shares = alpha - log_probability[:, None, None]
        ctx.blank_taken = (shares + blanks + after_blank).exp().to(logits[0].dtype)  # the expected count of each blank
        ctx.token_taken = (shares[:, :, :-1] + tokens + after_token).exp().to(logits[0].dtype)
        ctx.totals, ctx.indices = totals, indices
        ctx.save_for_backward(*logits)
        return -log_probability.to(logits[0].dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None]
        rows = zip(ctx.saved_tensors, ctx.totals, ctx.indices, strict=True)
        for row, (scores, total, index) in enumerate(rows):
            frames, places, _ = scores.shape
            blank_taken = ctx.blank_taken[row, :frames, :places] * gradients[0][row]
            token_taken = ctx.token_taken[row, :frames, : places - 1] * gradients[0][row]
            visited = blank_taken.clone()
            visited[:, :-1] += token_taken
            gradient = (scores - total.unsqueeze(-1)).exp_().mul_(visited.unsqueeze(-1))
            gradient[..., BLANK_ID] -= blank_taken
            gradient[:, :-1].scatter_add_(2, index, -token_taken.unsqueeze(2))
            found.append(gradient)
        return tuple(found)


def _forward(blanks: Tensor, tokens: Tensor) -> Tensor:
    """Returns alpha, [B, T, U + 1]: the log-probability of all paths to each position; undefined past a row's
    lengths."""
    run = _cumulated(tokens)  # [B, T, U + 1]
    reached = torch.full_like(blanks[:, 0], -torch.inf)
    reached[:, 0] = 0.0
    alpha = []
    for frame in range(blanks.shape[1]):
        here = run[:, frame]
        alpha.append(here + torch.logcumsumexp(reached - here, dim=1))
        reached = alpha[-1] + blanks[:, frame]
    return torch.stack(alpha, dim=1)


def _backward(blanks: Tensor, tokens: Tensor, num_frames: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns beta, the log-probability of all paths to the end: after a blank at each position, [B, T, U + 1], and
    after a token, [B, T, U]."""
    run = _cumulated(tokens)
    num_rows, length, width = blanks.shape
    ended = torch.full((num_rows, width), -torch.inf, dtype=blanks.dtype)
    ended[torch.arange(num_rows), num_tokens] = 0.0
    beta = torch.full_like(ended, -torch.inf)
    after_blank, after_token = [beta] * length, [beta] * length
    for frame in reversed(range(length)):
        after = torch.where((num_frames == frame + 1)[:, None], ended, beta)
        ways = after + blanks[:, frame] + run[:, frame]
        beta = ways.flip(1).logcumsumexp(dim=1).flip(1) - run[:, frame]
        after_blank[frame], after_token[frame] = after, beta[:, 1:]
    return torch.stack(after_blank, dim=1), torch.stack(after_token, dim=1)


def _cumulated(tokens: Tensor) -> Tensor:
    """Returns the log-probability of the first u tokens, all in one frame: [B, T, U + 1]."""
    return torch.nn.functional.pad(tokens.cumsum(dim=2), (1, 0))

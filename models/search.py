"""Greedy and beam search over a `Seq2Seq`, for evaluation during training. The server has its own, over ONNX graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from models.recurrent import state_names
from models.seq2seq import Seq2Seq


@torch.no_grad()
def beam_search(
    model: Seq2Seq,
    source: Tensor,
    source_lengths: Tensor | None,
    *,
    beam_size: int,
    max_tokens: int,
    bos_id: int,
    eos_id: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Returns the best target for each source. beam_size 1 is greedy search.

    source: [B, S] int64; source_lengths: [B] or None. Returns B token lists without start and end tokens. The score of
    a hypothesis is the sum of its tokens' log-probabilities, the end token included, divided by their number to the
    power of length_penalty.
    """
    rows, width = source.shape[0], beam_size
    carried = model.carried(source, source_lengths)
    num_states = len(state_names(model.config.cell))
    states = [state.repeat_interleave(width, 1) for state in carried[:num_states]]
    contexts = [context.repeat_interleave(width, 0) for context in carried[num_states:]]
    first_row = torch.arange(rows, device=source.device).unsqueeze(1) * width  # [B, 1]

    tokens = source.new_full((rows, width, 1), bos_id)
    total = torch.full((rows, width), float("-inf"), device=source.device)
    total[:, 0] = 0.0  # all beams of a row begin equal, so only one may compete
    finished = torch.zeros(rows, width, dtype=torch.bool, device=source.device)
    lengths = torch.zeros(rows, width, device=source.device)

    for _ in range(max_tokens + 1):
        logits, *states = model.decoder(tokens[:, :, -1].reshape(-1, 1), None, *states, *contexts)
        step = logits[:, 0].float().log_softmax(-1).view(rows, width, -1)  # [B, K, V]
        vocabulary = step.shape[-1]
        only_eos = torch.full_like(step, float("-inf"))
        only_eos[..., eos_id] = 0.0  # a finished beam does not change
        step = torch.where(finished.unsqueeze(-1), only_eos, step)
        candidates = total.unsqueeze(-1) + step
        candidate_lengths = (lengths + (~finished)).unsqueeze(-1)
        best = (candidates / candidate_lengths**length_penalty).flatten(1).topk(width, dim=1).indices  # [B, K]
        parent, token = best // vocabulary, best % vocabulary
        total = candidates.flatten(1).gather(1, best)
        lengths = candidate_lengths.squeeze(-1).gather(1, parent)
        finished = finished.gather(1, parent) | (token == eos_id)
        tokens = torch.cat([tokens.gather(1, parent.unsqueeze(-1).expand_as(tokens)), token.unsqueeze(-1)], dim=2)
        flat = (first_row + parent).flatten()
        states = [state[:, flat] for state in states]
        if bool(finished.all()):
            break

    winner = (total / lengths**length_penalty).argmax(dim=1)
    best_tokens = tokens[torch.arange(rows, device=source.device), winner, 1:].tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in best_tokens]


def search_all(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    *,
    beam_size: int,
    max_tokens: int,
    bos_id: int,
    eos_id: int,
    batch_size: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Runs `beam_search` for sources of any lengths, in batches of equal length, so that none needs padding.

    max_tokens: of a target, at most twice the source's tokens plus 16. Otherwise one search that does not end would
    cost its whole batch the remaining steps.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, source in enumerate(sources):
        by_length[len(source)].append(place)
    found: list[list[int]] = [[] for _ in sources]
    for places in by_length.values():
        for begin in range(0, len(places), batch_size):
            part = places[begin : begin + batch_size]
            batch = torch.tensor([sources[place] for place in part])
            decoded = beam_search(
                model,
                batch,
                None,
                beam_size=beam_size,
                max_tokens=min(max_tokens, 2 * len(sources[part[0]]) + 16),
                bos_id=bos_id,
                eos_id=eos_id,
                length_penalty=length_penalty,
            )
            for place, ids in zip(part, decoded, strict=True):
                found[place] = ids
    return found

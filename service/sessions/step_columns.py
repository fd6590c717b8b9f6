"""Checks, selects and spreads the columns of a step batch and of its answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from service.engine.jobs import Item, Lane, OutputKind, OutputSpec
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError
from service.sessions.checks import check_length
from service.sessions.session import Session


class StepBatch(NamedTuple):
    """The request of a step batch. All columns are in the order of the sessions.

    sessions: N distinct sessions, or None where there is none. refused: by place, why a session cannot take part, as
    far as the caller knows. tokens: the sessions' tokens one after another, `counts[i]` each; counts: None means 1
    each. positions: where the tokens begin; None: at the sessions' positions. outputs: what to return after the last
    token of each session. lanes: those of the sessions, if the caller knows that all can take part and use one engine.
    """

    sessions: list[Session | None]
    refused: dict[int, CarouselError]
    tokens: Sequence[Item]
    counts: list[int] | None
    positions: list[int] | None
    outputs: OutputSpec
    lanes: list[Lane] | None = None


def check_columns(batch: StepBatch, limit: int) -> None:
    """Raises InvalidFieldError and its subclasses unless the columns of a batch fit together. limit: of the number of
    tokens, and of sessions."""
    size, counts = len(batch.sessions), batch.counts
    check_length(size, limit, field="step_batch.handles", noun="handle")
    is_vectors = bool(batch.tokens) and isinstance(batch.tokens[0], bytes)
    column, noun = ("features", "vector") if is_vectors else ("token_ids", "token")
    check_length(len(batch.tokens), limit, field=f"step_batch.{column}", noun=noun)
    for name, entries in (("counts", counts), ("positions", batch.positions)):
        if entries is not None and len(entries) != size:
            raise InvalidFieldError(
                f"step_batch.{name} has {len(entries)} entries, but step_batch.handles has {size}",
                field=f"step_batch.{name}",
            )
    if counts is not None and min(counts) < 1:
        at = next(at for at, count in enumerate(counts) if count < 1)
        raise InvalidFieldError(
            f"step_batch.counts[{at}] = {counts[at]} must be 1 or more", field=f"step_batch.counts[{at}]"
        )
    expected = size if counts is None else sum(counts)
    if len(batch.tokens) != expected:
        expected_by = "step_batch.handles has" if counts is None else "step_batch.counts add up to"
        raise InvalidFieldError(
            f"step_batch.{column} has {len(batch.tokens)} entries, but {expected_by} {expected}",
            field=f"step_batch.{column}",
        )
    if batch.outputs.has_trace:
        raise InvalidFieldError(
            "step_batch.outputs.trace must not be set: only a feed can return a trace", field="step_batch.outputs.trace"
        )
    if batch.outputs.every_position:
        raise InvalidFieldError(
            "step_batch.outputs.every_position must not be set: a step batch returns one output for each session",
            field="step_batch.outputs.every_position",
        )


def several_frames(model: str) -> InvalidFieldError:
    """Returns the error for a transducer session that consumes several vectors in a step batch. The answer could report
    only the tokens of the last vector."""
    return InvalidFieldError(
        f"step_batch.counts must be 1 each: {model} emits tokens after every vector; send several vectors of one"
        " session as a feed",
        field="step_batch.counts",
    )


def select(
    places: Sequence[int], tokens: Sequence[Item], counts: list[int] | None, positions: list[int] | None
) -> tuple[Sequence[Item], list[int] | None, list[int] | None]:
    """Returns the columns of some places of a batch."""
    if counts is None:
        tokens = [tokens[place] for place in places]
    else:
        ends = list(accumulate(counts, initial=0))
        tokens = [token for place in places for token in tokens[ends[place] : ends[place + 1]]]
        counts = [counts[place] for place in places]
    return tokens, counts, None if positions is None else [positions[place] for place in places]


def spread(
    stepped: Stepped,
    outputs: OutputSpec,
    *,
    places: Sequence[int],
    refused: dict[int, CarouselError],
    refused_positions: dict[int, int],
) -> Stepped:
    """Returns the answer with places for the refused sessions added: their positions, and 0 in every other column."""
    if not refused:
        return stepped
    size, places = len(places) + len(refused), list(places)
    width = {OutputKind.NEXT_TOKEN: 1, OutputKind.TOP_K: outputs.top_k}.get(outputs.kind, 0)

    def column(values: list[Any], width: int) -> list[Any]:
        if not values:
            return [0] * (size * width)
        whole = np.zeros((size, width), np.array(values[:1]).dtype)
        whole[places] = np.array(values).reshape(-1, width)
        spread: list[Any] = whole.ravel().tolist()
        return spread

    logits = None
    if stepped.logits is not None:
        logits = np.zeros((size, stepped.logits.shape[-1]), np.float32)
        logits[places] = stepped.logits
    positions = column(stepped.positions, 1)
    for place, position in refused_positions.items():
        positions[place] = position
    errors = [*((places[place], error) for place, error in stepped.errors), *refused.items()]
    return Stepped(
        positions,
        column(stepped.token_ids, width),
        column(stepped.log_probabilities, width) if outputs.kind is OutputKind.TOP_K else [],
        logits,
        sorted(errors, key=lambda one: one[0]),
    )

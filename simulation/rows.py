"""One session's row in the answer to a step batch."""

from __future__ import annotations

from typing import NamedTuple

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.entries import Entry
from simulation.worlds import Matches, output_matches


class Row(NamedTuple):
    """One session's part of a step batch's answer. output: None if there are no tokens."""

    position: int
    output: pb.StepOutput | None
    error: error_pb2.Error | None


def output_of(entry: Entry, answer: pb.BatchStepped) -> pb.StepOutput | None:
    """Returns a session's output: one token, or all tokens that it emitted; None if there are no tokens."""
    place = entry.place
    if not answer.counts:
        tokens = [pb.Token(id=answer.token_ids[place])] if answer.token_ids else []
        return pb.StepOutput(position=answer.positions[place], tokens=tokens) if tokens else None
    first, count = sum(answer.counts[:place]), answer.counts[place]
    ids, scores = answer.token_ids[first : first + count], answer.log_probabilities[first : first + count]
    tokens = [pb.Token(id=one, log_probability=score) for one, score in zip(ids, scores, strict=True)]
    limited = answer.num_limited[place]
    return pb.StepOutput(position=answer.positions[place], tokens=tokens, num_limited=limited) if tokens else None


def row_matches(entry: Entry, row: Row) -> Matches:
    """Returns a function that says whether the row's output agrees with the worlds of a feed."""
    return output_matches([] if row.output is None else [row.output], entry.kind, entry.tokens)

"""What the answer to a step batch tells of one of its sessions."""

from __future__ import annotations

from typing import NamedTuple

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.entries import Entry
from simulation.worlds import Matches, output_matches


class Row(NamedTuple):
    """What a step batch's answer tells of one session. output: its tokens; None where there are none."""

    position: int
    output: pb.StepOutput | None
    error: error_pb2.Error | None


def output_of(entry: Entry, answer: pb.BatchStepped) -> pb.StepOutput | None:
    """What a session was told: a token, or as many as it has emitted."""
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
    """Whether a row's output is what a way gives."""
    return output_matches([] if row.output is None else [row.output], entry.kind, entry.tokens)

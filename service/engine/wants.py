"""What a batch's run has to tell, so that no more than that is fetched."""

from __future__ import annotations

from typing import NamedTuple

from service.engine.jobs import FeedJob, GenerateJob, OutputKind
from service.engine.scheduler import Batch


class Wants(NamedTuple):
    """What is to be fetched of a run, beside the likeliest token. logits: of every token; top_k: the most that a row
    asks for; 0: nobody does; trace: what a look inside tells."""

    logits: bool
    top_k: int = 0
    trace: bool = False


def wants_of(batch: Batch, *, keeps_logits: bool) -> Wants:
    """What a batch's jobs need. keeps_logits: whether they must outlive the run, for lanes to know what comes next."""
    logits, top_k, trace = keeps_logits, 0, False
    for group in batch.groups:
        logits = logits or group.wants_logits
        top_k = max(top_k, group.top_k)
    for lane in batch.lanes:
        job = lane.job
        if isinstance(job, GenerateJob):
            logits = logits or not job.takes_likeliest
        elif isinstance(job, FeedJob):
            kind = job.outputs.kind
            if kind is OutputKind.TOP_K:
                top_k = max(top_k, job.outputs.top_k)
            elif kind.is_vector or job.targets is not None:
                logits = True
            trace = trace or job.outputs.has_trace
    return Wants(logits, top_k, trace)

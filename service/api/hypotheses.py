"""Makes a message of what a beam search found. Event loop only."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.api.slices import SLICE, Slices
from service.api.text import text_after
from service.engine.results import Searched
from service.repository.bundle import Bundle


async def hypotheses_found(result: Searched, bundle: Bundle) -> pb.Generated:
    """Returns the answer to a beam search, made in slices. The first hypothesis, which is the best, is also what was
    generated."""
    slices, hypotheses = Slices(), result.hypotheses
    message = pb.Generated(finish_reason=pb.FINISH_REASON_EOS)
    for hypothesis in hypotheses:
        added = message.hypotheses.add()
        for begin in range(0, max(1, len(hypothesis.tokens)), SLICE):
            part = hypothesis._replace(
                tokens=hypothesis.tokens[begin : begin + SLICE],
                log_probabilities=hypothesis.log_probabilities[begin : begin + SLICE],
            )
            added.MergeFrom(convert.hypothesis(part, bundle))
            await slices.made(1 + len(part.tokens))
        text = text_after(result.before, bundle)
        if text is not None:
            complete = text.add(hypothesis.tokens)
            added.text = complete + text.unfinished
            if hypothesis is hypotheses[0]:
                message.text, message.unfinished_text = complete, text.unfinished
    if hypotheses:
        best = message.hypotheses[0]
        message.finish_reason = best.finish_reason
        for begin in range(0, len(best.tokens), SLICE):
            message.tokens.extend(best.tokens[begin : begin + SLICE])
            await slices.made(SLICE)
    return message

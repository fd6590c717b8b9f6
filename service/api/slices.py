"""Large messages, made in slices: after each of them the event loop serves others. Making a message of 4 MiB of small
numbers and names takes up to 0.2 s, a slice about 1 ms.

A slice is a number of fields, and no time, so that a run can be repeated exactly. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.api.status import MAX_MESSAGE_LENGTH
from service.engine.beam import Hypothesis
from service.engine.items import Item
from service.engine.results import Encoded, Fed, Searched, StepOutput, Stepped
from service.repository.bundle import Bundle
from service.repository.vocabulary import Vocabulary
from service.sessions.session import Request

_SLICE = 1000
"""Fields of a message, each of which takes about 1 us to make."""
_ARRAY = 8
"""An array takes as long as so many other fields."""
_ERROR = 20
"""So does an error."""
_NUMBERS = 16
"""Plain numbers of a packed field that take as long as another field."""


class _Slices:
    """Counts what was made since the event loop had its last turn."""

    def __init__(self) -> None:
        self._left = _SLICE

    async def made(self, num_fields: int) -> None:
        self._left -= num_fields
        if self._left <= 0:
            self._left = _SLICE
            await asyncio.sleep(0)


async def opened(request: Request, result: Fed, source: Sequence[Item] | None) -> pb.StreamResponse:
    """A session is open, and this is what comes next in it. source: as the model read it."""
    response = answers.opened(request, Encoded(result.position), source)
    vocabulary = request.session.served.bundle.target_vocabulary
    await _fill(response.opened.output, result.outputs[0], vocabulary, _Slices())
    return response


async def fed(request: Request, result: Fed) -> pb.StreamResponse:
    """Tokens were consumed."""
    response = answers.fed(request, result._replace(outputs=[]))
    vocabulary, slices = request.session.served.bundle.target_vocabulary, _Slices()
    for output in result.outputs:
        await _fill(response.fed.outputs.add(), output, vocabulary, slices)
    return response


async def _fill(message: pb.StepOutput, output: StepOutput, vocabulary: Vocabulary | None, slices: _Slices) -> None:
    num_tokens = len(output.token_ids)
    if num_tokens <= _SLICE:
        convert.fill(message, output, vocabulary)
        await slices.made(num_tokens + _ARRAY * (1 + len(output.trace or ())))
        return
    convert.fill(message, output._replace(token_ids=[], log_probabilities=None), vocabulary)
    for begin in range(0, num_tokens, _SLICE):
        end = begin + _SLICE
        scores = None if output.log_probabilities is None else output.log_probabilities[begin:end]
        convert.fill(message, StepOutput(output.position, output.token_ids[begin:end], scores), vocabulary)
        await slices.made(_SLICE)


async def found(request: Request, result: Searched) -> pb.StreamResponse:
    """A beam search is done."""
    bundle = request.session.served.bundle
    return pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        position=result.position,
        generated=await generated(result.hypotheses, bundle),
    )


async def generated(hypotheses: Sequence[Hypothesis], bundle: Bundle) -> pb.Generated:
    """What a beam search has found: the first of the hypotheses is what was generated."""
    slices = _Slices()
    message = pb.Generated(finish_reason=pb.FINISH_REASON_EOS)
    for hypothesis in hypotheses:
        told = message.hypotheses.add()
        for begin in range(0, max(1, len(hypothesis.tokens)), _SLICE):
            part = hypothesis._replace(
                tokens=hypothesis.tokens[begin : begin + _SLICE],
                log_probabilities=hypothesis.log_probabilities[begin : begin + _SLICE],
            )
            told.MergeFrom(convert.hypothesis(part, bundle))
            await slices.made(1 + len(part.tokens))
    if hypotheses:
        best = message.hypotheses[0]
        message.finish_reason = best.finish_reason
        for begin in range(0, len(best.tokens), _SLICE):
            message.tokens.extend(best.tokens[begin : begin + _SLICE])
            await slices.made(_SLICE)
    return message


async def batch_stepped(
    request: Request, result: Stepped, *, gives_values: bool, error_length: int = MAX_MESSAGE_LENGTH
) -> pb.StreamResponse:
    """A step batch was carried out. Arguments as those of `answers.stepped`."""
    response = pb.StreamResponse(request_id=request.request_id)
    message = response.batch_stepped
    message.replayed = request.replayed
    num_rows, width = len(result.positions), 1
    if result.logits is not None:
        width = result.logits.shape[1]
    elif num_rows:
        width = 1 + len(result.token_ids) // num_rows
    step = max(1, _SLICE * _NUMBERS // width)
    for begin in range(0, num_rows, step):
        message.MergeFrom(answers.stepped(_rows(result, begin, begin + step), gives_values=gives_values))
        if begin + step < num_rows:
            await asyncio.sleep(0)
    step = _SLICE // _ERROR
    for begin in range(0, len(result.errors), step):
        errors = Stepped([], [], [], None, result.errors[begin : begin + step])
        message.MergeFrom(answers.stepped(errors, gives_values=gives_values, error_length=error_length))
        await asyncio.sleep(0)
    return response


def _rows(result: Stepped, begin: int, end: int) -> Stepped:
    """Some rows of a result, without errors."""
    k = len(result.token_ids) // len(result.positions)
    return Stepped(
        result.positions[begin:end],
        result.token_ids[begin * k : end * k],
        result.log_probabilities[begin * k : end * k],
        None if result.logits is None else result.logits[begin:end],
        [],
    )

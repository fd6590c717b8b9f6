"""Makes the responses of a stream from results.

Functions whose names begin with `large_` make a large message in slices: after each slice the event loop serves others.
A message of 4 MiB of small numbers and names takes up to 0.2 s to make, a slice about 1 ms. The size of a slice is a
number of fields and not a time, so that a run can be repeated exactly. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.api import convert, session_messages
from service.api.hypotheses import hypotheses_found
from service.api.part import Part
from service.api.slices import ARRAY, ERROR, NUMBERS, SLICE, Slices
from service.api.status import MAX_MESSAGE_LENGTH, to_message
from service.engine.jobs import Item
from service.engine.results import Encoded, Fed, Result, Scored, Searched, StepOutput, Stepped
from service.repository.manifest import PortSpec
from service.repository.vocabulary import Vocabulary
from service.sessions.persistence import PLAIN_PERSISTENCE
from service.sessions.request import Request
from service.sessions.session import CloseReason, Session


def opened(request: Request, result: Result, source: Sequence[Item] | None) -> pb.StreamResponse:
    """Returns the response to an opening. source: the source items, as the model reads them."""
    session = request.session
    bundle, message = session.served.bundle, described(session)
    message.handle = session.handle
    if source is not None and bundle.source_vocabulary is not None:
        message.source.extend(convert.source_tokens(source, bundle.source_vocabulary))
    if isinstance(result, Fed) and result.outputs:
        convert.fill(message.output, result.outputs[0], bundle.target_vocabulary)
    return with_checkpoint(
        pb.StreamResponse(request_id=request.request_id, session_id=session.name, opened=message), session
    )


def described(session: Session) -> pb.Opened:
    """Returns the `Opened` message of a session with its model, durability, ports and feature size."""
    bundle = session.served.bundle
    return pb.Opened(
        model=bundle.model,
        version=bundle.version,
        variant=session.served.variant,
        durability=session_messages.durability(session),
        inputs=ports(bundle.manifest.step.inputs),
        outputs=ports(bundle.manifest.step.outputs),
        feature_size=bundle.manifest.step.feature_size,
    )


def ports(specs: Sequence[PortSpec]) -> list[pb.Port]:
    """Returns the named parts of vectors."""
    return [pb.Port(name=spec.name, dtype=spec.dtype, shape=spec.shape, is_end=spec.is_end) for spec in specs]


def resumed(request_id: int, session: Session, position: int, *, is_here: bool) -> pb.StreamResponse:
    """Returns the response to a resume request. is_here: whether the session was in memory."""
    message = described(session)
    message.handle = session.handle
    message.restored_from = pb.RESTORED_FROM_MEMORY if is_here else pb.RESTORED_FROM_STORE
    return with_checkpoint(
        pb.StreamResponse(request_id=request_id, session_id=session.name, position=position, opened=message), session
    )


def with_checkpoint(response: pb.StreamResponse, session: Session) -> pb.StreamResponse:
    """Adds the stored position of the session to the response if the client does not know it yet. Returns the
    response."""
    if session.persistence is not PLAIN_PERSISTENCE:
        position = session.persistence.unreported_checkpoint()
        if position is not None:
            response.checkpoint_position = position
    return response


def go_away(grace_s: float) -> pb.StreamResponse:
    """Returns the notice that the server shuts down. grace_s: seconds until it ends the stream."""
    message = pb.GoAway()
    message.grace.FromNanoseconds(round(grace_s * 1e9))
    return pb.StreamResponse(go_away=message)


def fed(request: Request, result: Fed) -> pb.StreamResponse:
    """Returns the response to a feed."""
    session = request.session
    response = pb.StreamResponse(request_id=request.request_id, session_id=session.name, position=result.position)
    message = response.fed
    message.replayed = request.replayed  # set even if false: this makes `fed` the kind of the response
    vocabulary = session.served.bundle.target_vocabulary
    for position, token_ids, log_probabilities, logits, trace, num_limited in result.outputs:
        filled = message.outputs.add()
        if vocabulary is not None and log_probabilities is None and logits is None and trace is None:
            filled.position = position  # the most frequent case: tokens alone
            tokens = vocabulary.derived.get("tokens") or convert.token_messages(vocabulary)
            for token_id in token_ids:
                filled.tokens.append(tokens[token_id])
        else:
            output = StepOutput(position, token_ids, log_probabilities, logits, trace, num_limited)
            convert.fill(filled, output, vocabulary)
    return response if session.persistence is PLAIN_PERSISTENCE else with_checkpoint(response, session)


def generated(request: Request, part: Part) -> pb.StreamResponse:
    """Returns the response that has a part of a generation."""
    response = pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        generated=part.take(),
        position=part.position,
    )
    return with_checkpoint(response, request.session)


def scored(request: Request, result: Scored) -> pb.StreamResponse:
    """Returns the response to a score."""
    return pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        position=result.position,
        scored=pb.Scored(scores=convert.target_scores(result.log_probabilities)),
    )


def stepped(
    result: Stepped, *, numbers: convert.Numbers, error_length: int = MAX_MESSAGE_LENGTH, call_id: str = ""
) -> pb.BatchStepped:
    """Returns the result of a step batch as a message. numbers: what `result.logits` holds; error_length: the most
    characters of each text of an error; call_id: see `to_message`."""
    message = pb.BatchStepped(
        positions=result.positions,
        token_ids=result.token_ids,
        log_probabilities=result.log_probabilities,
        errors=[
            pb.BatchError(index=place, error=to_message(error, error_length, call_id=call_id))
            for place, error in result.errors
        ],
    )
    if result.logits is not None:
        convert.fill_numbers(message, result.logits, numbers)
    return message


def batch_stepped(
    request: Request,
    result: Stepped,
    *,
    numbers: convert.Numbers,
    error_length: int = MAX_MESSAGE_LENGTH,
    call_id: str = "",
) -> pb.StreamResponse:
    """Returns the response to a step batch. The arguments are those of `stepped`."""
    message = stepped(result, numbers=numbers, error_length=error_length, call_id=call_id)
    message.replayed = request.replayed
    return pb.StreamResponse(request_id=request.request_id, batch_stepped=message)


def cancelled(request_id: int, session: Session, position: int, count: int) -> pb.StreamResponse:
    """Returns the response to a cancel. position: where the session was then; count: the number of requests that were
    cancelled."""
    return pb.StreamResponse(
        request_id=request_id,
        session_id=session.name,
        position=session.reportable(position),
        cancelled=pb.Cancelled(request_count=count),
    )


def closed(request_id: int, session: Session, reason: CloseReason) -> pb.StreamResponse:
    """Returns the response to a close, or the notice that a session was closed: `request_id` is then 0."""
    return pb.StreamResponse(
        request_id=request_id,
        session_id=session.name,
        position=session.reportable_position,
        closed=pb.Closed(reason=session_messages.close_reason(reason)),
    )


async def large_opened(request: Request, result: Fed, source: Sequence[Item] | None) -> pb.StreamResponse:
    """Returns the response to an opening that asked for outputs, made in slices. source: the source items, as the model
    reads them."""
    response = opened(request, Encoded(result.position), source)
    vocabulary = request.session.served.bundle.target_vocabulary
    await _fill(response.opened.output, result.outputs[0], vocabulary, Slices())
    return response


async def large_fed(request: Request, result: Fed) -> pb.StreamResponse:
    """Returns the response to a feed, made in slices."""
    response = fed(request, result._replace(outputs=[]))
    await add_outputs(response.fed, result.outputs, request.session)
    return response


async def add_outputs(message: pb.Fed, outputs: Sequence[StepOutput], session: Session) -> None:
    """Adds the outputs of a feed to a message, in slices."""
    vocabulary, slices = session.served.bundle.target_vocabulary, Slices()
    for output in outputs:
        await _fill(message.outputs.add(), output, vocabulary, slices)


async def _fill(message: pb.StepOutput, output: StepOutput, vocabulary: Vocabulary | None, slices: Slices) -> None:
    num_tokens = len(output.token_ids)
    if num_tokens <= SLICE:
        convert.fill(message, output, vocabulary)
        await slices.made(num_tokens + ARRAY * (1 + len(output.trace or ())))
        return
    convert.fill(message, output._replace(token_ids=[], log_probabilities=None), vocabulary)
    for begin in range(0, num_tokens, SLICE):
        end = begin + SLICE
        scores = None if output.log_probabilities is None else output.log_probabilities[begin:end]
        convert.fill(message, StepOutput(output.position, output.token_ids[begin:end], scores), vocabulary)
        await slices.made(SLICE)


async def found(request: Request, result: Searched) -> pb.StreamResponse:
    """Returns the response to a beam search, made in slices."""
    bundle = request.session.served.bundle
    return pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        position=result.position,
        generated=await hypotheses_found(result, bundle),
    )


async def large_batch_stepped(
    request: Request,
    result: Stepped,
    *,
    numbers: convert.Numbers,
    error_length: int = MAX_MESSAGE_LENGTH,
    call_id: str = "",
) -> pb.StreamResponse:
    """Returns the response to a step batch, made in slices. The arguments are those of `stepped`."""
    response = pb.StreamResponse(request_id=request.request_id)
    message = response.batch_stepped
    message.replayed = request.replayed
    num_rows, width = len(result.positions), 1
    if result.logits is not None:
        width = result.logits.shape[1]
    elif num_rows:
        width = 1 + len(result.token_ids) // num_rows
    step = max(1, SLICE * NUMBERS // width)
    for begin in range(0, num_rows, step):
        message.MergeFrom(stepped(_rows(result, begin, begin + step), numbers=numbers))
        if begin + step < num_rows:
            await asyncio.sleep(0)
    step = SLICE // ERROR
    for begin in range(0, len(result.errors), step):
        errors = Stepped([], [], [], None, result.errors[begin : begin + step])
        message.MergeFrom(stepped(errors, numbers=numbers, error_length=error_length, call_id=call_id))
        await asyncio.sleep(0)
    return response


def _rows(result: Stepped, begin: int, end: int) -> Stepped:
    """Returns the rows from `begin` to `end` of a result, without errors."""
    k = len(result.token_ids) // len(result.positions)
    return Stepped(
        result.positions[begin:end],
        result.token_ids[begin * k : end * k],
        result.log_probabilities[begin * k : end * k],
        None if result.logits is None else result.logits[begin:end],
        [],
    )

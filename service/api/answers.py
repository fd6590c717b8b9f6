"""What a stream answers: pure functions from results to responses."""

from __future__ import annotations

from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.api import convert, session_messages
from service.api.part import Part
from service.api.status import MAX_MESSAGE_LENGTH, to_message
from service.api.tensors import extend_floats
from service.engine.items import Item
from service.engine.results import Fed, Result, Scored, StepOutput, Stepped
from service.errors import CarouselError, shortened
from service.sessions.persistence import NOT_STORED
from service.sessions.session import CloseReason, Request, Session

_MAX_ID = 140
"""Characters of an id that no session can have, which a refusal repeats."""


def opened(request: Request, result: Result, source: Sequence[Item] | None) -> pb.StreamResponse:
    """A session is open. source: as the model read it."""
    session = request.session
    bundle = session.served.bundle
    message = pb.Opened(
        model=bundle.model,
        version=bundle.version,
        variant=session.served.variant,
        handle=session.handle,
        durability=session_messages.durability(session),
    )
    if source is not None and bundle.source_vocabulary is not None:
        message.source.extend(convert.source_tokens(source, bundle.source_vocabulary))
    if isinstance(result, Fed):
        convert.fill(message.output, result.outputs[0], bundle.target_vocabulary)
    return with_checkpoint(
        pb.StreamResponse(request_id=request.request_id, session_id=session.name, opened=message), session
    )


def resumed(request_id: int, session: Session, *, is_here: bool) -> pb.StreamResponse:
    """A session was resumed. is_here: whether it was in memory."""
    bundle = session.served.bundle
    message = pb.Opened(
        model=bundle.model,
        version=bundle.version,
        variant=session.served.variant,
        handle=session.handle,
        durability=session_messages.durability(session),
        restored_from=pb.RESTORED_FROM_MEMORY if is_here else pb.RESTORED_FROM_STORE,
    )
    return with_checkpoint(
        pb.StreamResponse(request_id=request_id, session_id=session.name, position=session.position, opened=message),
        session,
    )


def with_checkpoint(response: pb.StreamResponse, session: Session) -> pb.StreamResponse:
    """The response, with the stored position of its session when the client does not know it yet."""
    if session.persistence is not NOT_STORED:
        position = session.persistence.unreported_checkpoint()
        if position is not None:
            response.checkpoint_position = position
    return response


def go_away(grace_s: float) -> pb.StreamResponse:
    """The server is leaving."""
    message = pb.GoAway()
    message.grace.FromNanoseconds(round(grace_s * 1e9))
    return pb.StreamResponse(go_away=message)


def fed(request: Request, result: Fed) -> pb.StreamResponse:
    """Tokens were consumed."""
    session = request.session
    response = pb.StreamResponse(request_id=request.request_id, session_id=session.name, position=result.position)
    message = response.fed
    message.replayed = request.replayed  # also when it is false: setting it makes the answer one of this kind
    vocabulary = session.served.bundle.target_vocabulary
    for position, token_ids, log_probabilities, logits, trace in result.outputs:
        filled = message.outputs.add()
        if vocabulary is not None and log_probabilities is None and logits is None and trace is None:
            filled.position = position  # tokens alone, as nearly always
            tokens = vocabulary.derived.get("tokens") or convert.token_messages(vocabulary)
            for token_id in token_ids:
                filled.tokens.append(tokens[token_id])
        else:
            output = StepOutput(position, token_ids, log_probabilities, logits, trace)
            convert.fill(filled, output, vocabulary)
    return response if session.persistence is NOT_STORED else with_checkpoint(response, session)


def generated(request: Request, part: Part) -> pb.StreamResponse:
    """A part of a generation."""
    response = pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        generated=part.take(),
        position=part.position,
    )
    return with_checkpoint(response, request.session)


def scored(request: Request, result: Scored) -> pb.StreamResponse:
    """Targets were scored."""
    return pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session.name,
        position=result.position,
        scored=pb.Scored(scores=convert.target_scores(result.log_probabilities)),
    )


def stepped(result: Stepped, *, gives_values: bool, error_length: int = MAX_MESSAGE_LENGTH) -> pb.BatchStepped:
    """Many sessions consumed tokens. gives_values: whether what is told in logits is values; error_length: characters
    of each text of an error."""
    message = pb.BatchStepped(
        positions=result.positions,
        token_ids=result.token_ids,
        log_probabilities=result.log_probabilities,
        errors=[pb.BatchError(index=place, error=to_message(error, error_length)) for place, error in result.errors],
    )
    if result.logits is not None:
        extend_floats(message, "values" if gives_values else "logits", result.logits)
    return message


def batch_stepped(
    request: Request, result: Stepped, *, gives_values: bool, error_length: int = MAX_MESSAGE_LENGTH
) -> pb.StreamResponse:
    """A step batch was carried out. Arguments as those of `stepped`."""
    message = stepped(result, gives_values=gives_values, error_length=error_length)
    message.replayed = request.replayed
    return pb.StreamResponse(request_id=request.request_id, batch_stepped=message)


def cancelled(request_id: int, session: Session, count: int) -> pb.StreamResponse:
    """A session's work in flight has ended."""
    return pb.StreamResponse(
        request_id=request_id,
        session_id=session.name,
        position=session.reportable_position,
        cancelled=pb.Cancelled(request_count=count),
    )


def closed(request_id: int, session: Session, reason: CloseReason) -> pb.StreamResponse:
    """A session is closed."""
    return pb.StreamResponse(
        request_id=request_id,
        session_id=session.name,
        position=session.position,
        closed=pb.Closed(reason=session_messages.close_reason(reason)),
    )


def refused(request_id: int, session_id: str, session: Session | None, error: CarouselError) -> pb.StreamResponse:
    """A request was refused or has failed. session: the one that it was about, if it is known."""
    return pb.StreamResponse(
        request_id=request_id,
        session_id=shortened(session_id, _MAX_ID),
        position=0 if session is None else session.reportable_position,
        error=to_message(error),
    )

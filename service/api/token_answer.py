"""The response to a feed that returns one token. It is made once and filled in for each feed, because making its five
messages takes several times as long as filling them in."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.engine.results import Fed
from service.sessions.persistence import PLAIN_PERSISTENCE
from service.sessions.request import Request


class TokenAnswer:
    """A response that is used again: the caller must serialize it before it is filled in again. Event loop only."""

    def __init__(self) -> None:
        self._response = pb.StreamResponse()
        self._response.fed.replayed = False  # set although false, as in `answers.fed`
        self._output = self._response.fed.outputs.add()
        self._token = self._output.tokens.add()

    def of(self, request: Request, result: Fed) -> pb.StreamResponse | None:
        """Returns what `answers.fed` would make, valid until the next call; None if the response has another form."""
        session, outputs = request.session, result.outputs
        vocabulary = session.served.bundle.target_vocabulary
        if len(outputs) != 1 or vocabulary is None or session.persistence is not PLAIN_PERSISTENCE or request.replayed:
            return None
        position, token_ids, log_probabilities, logits, trace, _ = outputs[0]
        if len(token_ids) != 1 or log_probabilities is not None or logits is not None or trace is not None:
            return None
        response = self._response
        response.request_id = request.request_id
        response.session_id = session.name
        response.position = result.position
        self._output.position = position
        tokens = vocabulary.derived.get("tokens") or convert.token_messages(vocabulary)
        self._token.CopyFrom(tokens[token_ids[0]])
        return response

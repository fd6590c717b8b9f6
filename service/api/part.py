"""A part of a generation: its tokens wait in it until the writer takes them as one response.

A fast reader thus gets each token at once. A slow reader gets in one response all tokens that were generated meanwhile.
Event loop only.
"""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api import convert, vectors
from service.api.text import Text
from service.engine.jobs import ITEM_SIZE, Item
from service.engine.results import Generated
from service.repository.bundle import Bundle
from service.repository.vocabulary import Vocabulary

_MAX_BYTES = 1024 * 1024
"""The most bytes of a part, even where a response may be larger."""


class Part:
    """Tokens of one generation, in order; of a model that outputs values, vectors.

    max_bytes: the most bytes of a response. text: the text of the generation, if it has one: all of its parts share it,
    and must be taken in order.
    """

    __slots__ = (
        "_bundle",
        "_log_probabilities",
        "_max_items",
        "_token_ids",
        "finish_reason",
        "is_taken",
        "position",
        "text",
    )

    def __init__(self, bundle: Bundle, max_bytes: int, text: Text | None = None) -> None:
        self._bundle = bundle
        self.text = text
        self._max_items = _max_items(bundle, max_bytes)
        self._token_ids: list[Item] = []
        self._log_probabilities: list[float] = []
        self.position = 0
        self.finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self.is_taken = False

    def __len__(self) -> int:
        return len(self._token_ids)

    @property
    def room(self) -> int:
        """How many more tokens the response can hold. A result that is longer starts another part: see `pieces`."""
        return self._max_items - len(self._token_ids)

    def add(self, result: Generated) -> None:
        """Adds the tokens of one result. Not allowed after `take`. Either all results of a part have log-probabilities,
        or none has."""
        self._token_ids += result.token_ids
        self._log_probabilities += result.log_probabilities or ()
        self.position = result.position
        self.finish_reason = convert.finish_reason(result.finish_reason)

    def take(self) -> pb.Generated:
        """Returns the message. Nothing can be added afterwards."""
        generated = self._taken()
        if self.text is not None:
            generated.text = self.text.add(self._token_ids)  # type: ignore[arg-type]  # the model has a vocabulary
            if self.finish_reason:
                generated.unfinished_text = self.text.unfinished
        return generated

    def _taken(self) -> pb.Generated:
        self.is_taken = True
        vocabulary = self._bundle.target_vocabulary
        if vocabulary is None:
            values = vectors.tensor(self._token_ids, self._bundle.manifest.output_size)
            return pb.Generated(values=values, finish_reason=self.finish_reason)
        token_ids: list[int] = self._token_ids  # type: ignore[assignment]  # models with a vocabulary generate token ids
        if self._log_probabilities:
            names = vocabulary.names
            pairs = zip(token_ids, self._log_probabilities, strict=True)
            tokens = [pb.Token(id=token, text=names[token], log_probability=p) for token, p in pairs]
            return pb.Generated(tokens=tokens, finish_reason=self.finish_reason)
        forms = vocabulary.derived.get("generated") or _wire_forms(vocabulary)
        generated = pb.Generated.FromString(b"".join([forms[token] for token in token_ids]))
        generated.finish_reason = self.finish_reason
        return generated


def pieces(result: Generated, bundle: Bundle, max_bytes: int) -> list[Generated]:
    """Splits a result so that each piece fits a part. Only the last piece has the finish reason."""
    size = _max_items(bundle, max_bytes)
    if len(result.token_ids) <= size:
        return [result]
    first = result.position - len(result.token_ids)
    cut = []
    for begin in range(0, len(result.token_ids), size):
        end = min(begin + size, len(result.token_ids))
        scores = None if result.log_probabilities is None else result.log_probabilities[begin:end]
        reason = result.finish_reason if end == len(result.token_ids) else None
        before = None if begin else result.before
        cut.append(Generated(first + end, result.token_ids[begin:end], scores, reason, before))
    return cut


def _max_items(bundle: Bundle, max_bytes: int) -> int:
    return max(1, min(max_bytes, _MAX_BYTES) // (bundle.max_token_bytes or ITEM_SIZE * bundle.manifest.output_size))


class _WireForms(dict[int, bytes]):
    """A serialized `Generated` for each token, by id. Joined, they are a `Generated` of all these tokens, by the rules
    of Protocol Buffers. Parsing that is several times as fast as making the tokens one by one. Each is made when it is
    first asked for, since all of a large vocabulary together take 15 ms."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._messages = convert.token_messages(vocabulary)

    def __missing__(self, token: int) -> bytes:
        form = self[token] = pb.Generated(tokens=[self._messages[token]]).SerializeToString()
        return form


def _wire_forms(vocabulary: Vocabulary) -> _WireForms:
    forms: _WireForms | None = vocabulary.derived.get("generated")
    if forms is None:
        forms = vocabulary.derived["generated"] = _WireForms(vocabulary)
    return forms

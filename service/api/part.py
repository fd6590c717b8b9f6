"""A part of a generation that waits to be written: tokens gather in it until the writer takes it.

So a fast reader gets each token at once, and a slow one gets in one message what has come meanwhile. Event loop only.
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
"""Of a part, where an answer may be larger."""


class Part:
    """Tokens of one generation, in order; or vectors, of a model that gives values. max_bytes: that an answer
    may have. text: of the generation, if it has one: its parts share it, and are taken in their order."""

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
        """How many more tokens its message has room for. A result that is longer begins another part: see `pieces`."""
        return self._max_items - len(self._token_ids)

    def add(self, result: Generated) -> None:
        """Adds what one answer of the engine tells. Only while the part is not taken; all of a part's answers have
        log-probabilities, or none."""
        self._token_ids += result.token_ids
        self._log_probabilities += result.log_probabilities or ()
        self.position = result.position
        self.finish_reason = convert.finish_reason(result.finish_reason)

    def take(self) -> pb.Generated:
        """The message; nothing can be added from now on."""
        generated = self._taken()
        if self.text is not None:
            generated.text = self.text.add(self._token_ids)  # type: ignore[arg-type]  # a model of a vocabulary
            if self.finish_reason:
                generated.unfinished_text = self.text.unfinished
        return generated

    def _taken(self) -> pb.Generated:
        self.is_taken = True
        vocabulary = self._bundle.target_vocabulary
        if vocabulary is None:
            values = vectors.tensor(self._token_ids, self._bundle.manifest.output_size)
            return pb.Generated(values=values, finish_reason=self.finish_reason)
        token_ids: list[int] = self._token_ids  # type: ignore[assignment]  # a model of a vocabulary chooses tokens
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
    """A result cut so that each piece fits a part. All but the last have no end."""
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


def _wire_forms(vocabulary: Vocabulary) -> tuple[bytes, ...]:
    """A `Generated` of each token alone, serialised. Joined they are a `Generated` of all of them, by the rules of
    protocol buffers: parsing it is several times as fast as making its tokens one by one."""
    forms: tuple[bytes, ...] | None = vocabulary.derived.get("generated")
    if forms is None:
        messages = convert.token_messages(vocabulary)
        forms = tuple(pb.Generated(tokens=[token]).SerializeToString() for token in messages)
        vocabulary.derived["generated"] = forms
    return forms

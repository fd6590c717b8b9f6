"""The text of generated subwords. Each word is output when it is complete.

The text up to a position has the words that are complete there. It depends only on the tokens before the position, and
the last `HISTORY` of them are enough: a session that is forked, rewound, moved or restored inside a word continues with
the right word. A word is complete when the next one begins. A word of more than `HISTORY` tokens is output as it grows.
A character waits until all of its bytes are known.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from service.engine.last_tokens import LastTokens
from service.repository.bundle import Bundle
from service.repository.steps import HISTORY
from service.repository.subwords import Subwords

_Decoder = codecs.getincrementaldecoder("utf-8")


class Text:
    """Turns the tokens after a position into text. Event loop only."""

    def __init__(self, subwords: Subwords, before: LastTokens) -> None:
        self._spelt, self._begins_word = subwords.spelt, subwords.begins_word
        tokens = before.tokens
        begin = next((index for index in reversed(range(len(tokens))) if self._begins_word[tokens[index]]), None)
        is_whole = before.position == len(tokens)  # they are the whole sequence so far
        self._is_first = is_whole and begin in (None, 0)
        """Whether the current word is the first of the sequence, which has no space before it."""
        self._num_tokens = len(tokens) - (begin or 0) if is_whole or begin is not None else HISTORY + 1
        """Tokens of the current word so far. Above `HISTORY`, the word is output as it grows."""
        self._waiting = b"".join(self._spelt[token] for token in tokens[begin or 0 :])
        """Bytes of the current word that are not output yet."""
        if self._num_tokens > HISTORY:
            self._take_characters()

    def add(self, tokens: Sequence[int]) -> str:
        """Returns the text that further tokens complete. Each word but the first of the sequence has a space before
        it."""
        complete = []
        for token in tokens:
            if self._begins_word[token]:
                complete.append(self._take_all())
                self._is_first = self._is_first and not self._num_tokens
                self._num_tokens = 0
            self._waiting += self._spelt[token]
            self._num_tokens += 1
            if self._num_tokens > HISTORY:
                complete.append(self._take_characters())
        return "".join(complete)

    @property
    def unfinished(self) -> str:
        """The current word, which is not complete, as far as it is spelled."""
        return self._shown(_Decoder("replace").decode(self._waiting))

    def _take_all(self) -> str:
        waiting, self._waiting = self._waiting, b""
        return self._shown(waiting.decode("utf-8", "replace"))

    def _take_characters(self) -> str:
        """Removes and returns the characters whose bytes are all known."""
        decoder = _Decoder("replace")
        text = self._shown(decoder.decode(self._waiting))
        self._waiting = decoder.getstate()[0]
        self._is_first = self._is_first and not text
        return text

    def _shown(self, text: str) -> str:
        return text.removeprefix(" ") if self._is_first else text


def text_after(before: LastTokens | None, bundle: Bundle) -> Text | None:
    """Returns the text after a position; None for a model that has none."""
    vocabulary = bundle.target_vocabulary
    if before is None or vocabulary is None or vocabulary.subwords is None:
        return None
    return Text(vocabulary.subwords, before)

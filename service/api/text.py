"""The text of generated subwords: each word when it is complete.

The text up to a position is that of the words that are complete there, and follows from the tokens before it alone, of
which the last `HISTORY` are enough: a session that was forked, set back, moved or restored inside a word goes on with
the right one. A word is complete when the next begins; one of more than `HISTORY` tokens is given out as it comes.
Characters whose bytes are not all there wait.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from service.engine.before import Before
from service.repository.bundle import Bundle
from service.repository.steps import HISTORY
from service.repository.subwords import Subwords

_Decoder = codecs.getincrementaldecoder("utf-8")


class Text:
    """What tokens after a position add to the text. Event loop only."""

    def __init__(self, subwords: Subwords, before: Before) -> None:
        self._spelt, self._begins_word = subwords.spelt, subwords.begins_word
        tokens = before.tokens
        begin = next((index for index in reversed(range(len(tokens))) if self._begins_word[tokens[index]]), None)
        is_whole = before.position == len(tokens)  # the sequence begins with them
        self._is_first = is_whole and begin in (None, 0)
        """Whether the word is the first of the sequence, which no space stands before."""
        self._num_tokens = len(tokens) - (begin or 0) if is_whole or begin is not None else HISTORY + 1
        """Of the word so far; above `HISTORY`: it is given out as it comes."""
        self._waiting = b"".join(self._spelt[token] for token in tokens[begin or 0 :])
        """What is spelt and not given out."""
        if self._num_tokens > HISTORY:
            self._take_characters()

    def add(self, tokens: Sequence[int]) -> str:
        """The text that more tokens complete; a space is in front of each word but the first of the sequence."""
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
        """The word that is not complete, as far as it is spelt."""
        return self._shown(_Decoder("replace").decode(self._waiting))

    def _take_all(self) -> str:
        waiting, self._waiting = self._waiting, b""
        return self._shown(waiting.decode("utf-8", "replace"))

    def _take_characters(self) -> str:
        """Takes what is whole."""
        decoder = _Decoder("replace")
        text = self._shown(decoder.decode(self._waiting))
        self._waiting = decoder.getstate()[0]
        self._is_first = self._is_first and not text
        return text

    def _shown(self, text: str) -> str:
        return text.removeprefix(" ") if self._is_first else text


def text_after(before: Before | None, bundle: Bundle) -> Text | None:
    """The text of what comes after a position; None of models that have none."""
    vocabulary = bundle.target_vocabulary
    if before is None or vocabulary is None or vocabulary.subwords is None:
        return None
    return Text(vocabulary.subwords, before)

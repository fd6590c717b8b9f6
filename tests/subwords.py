"""A small SentencePiece model, trained on a few sentences of English."""

from __future__ import annotations

import io
from functools import cache

import sentencepiece as spm

TEXT = (
    "the house of the mouse is under the old tree, and the mouse sees the house",
    "an old house has old doors; a mouse opens the smallest of the doors",
    "über den Wolken muss die Freiheit wohl grenzenlos sein",
    "the doors of old houses are opened by the smallest of mice",
)


@cache
def model(*, byte_fallback: bool = True, num_pieces: int = 340) -> bytes:
    """Returns the serialized model. Its first pieces are pad, bos, eos and unknown; with `byte_fallback`, 256 byte
    pieces follow."""
    content = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 8),
        model_writer=content,
        vocab_size=num_pieces if byte_fallback else num_pieces - 256,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return content.getvalue()

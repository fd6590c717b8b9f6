"""The pieces that `translate-en-de` reads and writes: one vocabulary of both languages, learnt by SentencePiece."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import sentencepiece as spm

from models.recipes.translate_data import Pair

PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2, 3
NUM_PIECES = 8000
FILE = "pieces.model"


class Pieces:
    """A learnt vocabulary (Kudo 2018: a unigram model). What no piece has is cut into bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._processor = spm.SentencePieceProcessor(model_proto=content)

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @classmethod
    def of_run(cls, run: Path, pairs: Sequence[Pair]) -> Pieces:
        """Those of a run's folder, learnt from pairs unless they are there."""
        path = run / FILE
        if not path.exists():
            run.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(learn(pairs))
            os.replace(partial, path)
        return cls(path.read_bytes())

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the likeliest pieces of each text."""
        found: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
        return found

    def cut_at_random(self, texts: Sequence[str], *, seed: int, smoothness: float) -> list[list[int]]:
        """Ids of pieces drawn by their likelihood to the power of `smoothness`."""
        spm.set_random_generator_seed(seed % 2**32)
        found: list[list[int]] = self._processor.encode(
            list(texts), enable_sampling=True, nbest_size=-1, alpha=smoothness, num_threads=1
        )
        return found

    def text(self, ids: Sequence[int]) -> str:
        """What pieces spell."""
        return str(self._processor.decode(list(ids)))


def learn(pairs: Sequence[Pair]) -> bytes:
    """A model of SentencePiece, of both sides of the pairs; the same pairs give the same bytes."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted({side for pair in pairs for side in (pair.english, pair.german)})),
        model_writer=model,
        model_type="unigram",
        vocab_size=NUM_PIECES,
        hard_vocab_limit=False,  # of a small corpus as many as it has
        character_coverage=0.9999,
        byte_fallback=True,
        normalization_rule_name="nfkc",
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        unk_id=UNKNOWN_ID,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()

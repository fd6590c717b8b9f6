"""How good `translate-en-de` is: BLEU and chrF on the test split, beside two baselines, and translations to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from models import training
from models.recipes import translate_data as data
from models.recipes.translate_baselines import WordByWord, nearest
from models.recipes.translate_pieces import FILE, Pieces
from models.recipes.translate_training import load_model, translate
from models.seq2seq import Seq2Seq

JUDGED_WORDS = range(2, 21)
"""Words of a text that the model is judged by."""
BEAM_SIZE = 4
LENGTH_PENALTIES = (0.0, 0.5, 1.0, 1.5)
"""Those that are tried, on `NUM_TRIED` pairs of the validation split."""
NUM_TRIED = 500
NUM_EXAMPLES = 12
SHOWN_WORDS = range(4, 15)
"""Words of the texts of the test split that the card shows, which a hash has drawn."""

SENTENCES = (
    "The battery of your mouse is almost empty.",
    "We could not reach the server because your network is offline.",
    "Please choose a stronger password before you continue.",
    "Do you want to delete all photos from this album?",
    "The printer is out of paper and the last page was not printed.",
    "%1 of %2 songs were copied to your phone.",
    "Turn off the lights before you leave the office.",
    "Your order will arrive tomorrow morning.",
    "The cat sleeps on the keyboard.",
    "My grandmother sings beautiful old songs.",
)
"""Written for the card: in no split, and the last four not of programs at all."""


def write_evaluation(checkpoint: Path, corpus: Path) -> dict[str, object]:
    """Judges a checkpoint, and two baselines, on the test split, into `evaluation.json` beside it. Raises ValueError
    when one of `SENTENCES` is in the corpus."""
    model, pieces = load_model(checkpoint), Pieces((checkpoint.parent / FILE).read_bytes())
    splits = {split: data.load(corpus, split) for split in data.SPLITS}
    _refuse_known(splits)
    judged = [pair for pair in splits["test"] if len(pair.english.split()) in JUDGED_WORDS]
    texts, references = [pair.english for pair in judged], [pair.german for pair in judged]
    length_penalty = best_length_penalty(model, pieces, drawn(splits["validation"], NUM_TRIED))
    words = WordByWord(splits["train"])
    answers = {
        "greedy": translate(model, pieces, texts, beam_size=1),
        "beam_4": translate(model, pieces, texts, beam_size=BEAM_SIZE, length_penalty=length_penalty),
        "nearest_source": nearest(splits["train"], texts),
        "word_by_word": [words.translate(text) for text in texts],
    }
    bleu, chrf = BLEU(), CHRF()
    found: dict[str, object] = {
        "task": "English to German, messages of programs, 2 to 20 words",
        "split": "2 % of the groups of near-duplicates validate, 2 % test, by a hash of their letters; no German text "
        "of theirs is among those of training",
        "num_training_pairs": len(splits["train"]),
        "num_validation_pairs": len(splits["validation"]),
        "num_test_pairs": len(judged),
        "length_penalty": length_penalty,
    }
    for name, hypotheses in answers.items():
        found[name] = {
            "bleu": round(bleu.corpus_score(hypotheses, [references]).score, 2),
            "chrf": round(chrf.corpus_score(hypotheses, [references]).score, 2),
        }
    found["signatures"] = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    shown = drawn([pair for pair in judged if len(pair.english.split()) in SHOWN_WORDS], NUM_EXAMPLES)
    given = translate(model, pieces, [pair.english for pair in shown], beam_size=1)
    found["examples"] = [[pair.english, answer, pair.german] for pair, answer in zip(shown, given, strict=True)]
    given = translate(model, pieces, SENTENCES, beam_size=1)
    found["sentences"] = [list(both) for both in zip(SENTENCES, given, strict=True)]
    sources = corpus / data.SOURCES_FILE
    found["sources"] = json.loads(sources.read_text(encoding="utf-8")) if sources.exists() else []
    return training.write_evaluation(checkpoint, found)


def drawn(pairs: Sequence[data.Pair], count: int) -> list[data.Pair]:
    """At most `count` pairs, drawn by a hash: always the same."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(pair.english.encode()).digest())[:count]


def best_length_penalty(model: Seq2Seq, pieces: Pieces, pairs: Sequence[data.Pair]) -> float:
    """The one of `LENGTH_PENALTIES` that gives the highest BLEU; of equals the first."""
    texts, references = [pair.english for pair in pairs], [pair.german for pair in pairs]
    scores = {}
    for penalty in LENGTH_PENALTIES:
        answers = translate(model, pieces, texts, beam_size=BEAM_SIZE, length_penalty=penalty)
        scores[penalty] = BLEU().corpus_score(answers, [references]).score
        print(f"length penalty {penalty:g}: {scores[penalty]:.2f} BLEU on the validation split", flush=True)
    return max(scores, key=lambda penalty: scores[penalty])


def _refuse_known(splits: Mapping[data.Split, Sequence[data.Pair]]) -> None:
    groups = {data.group_of(pair.english) for pairs in splits.values() for pair in pairs}
    known = [sentence for sentence in SENTENCES if data.group_of(sentence) in groups]
    if known:
        raise ValueError(f"the corpus has {known}, but the card shows them as sentences of no split")

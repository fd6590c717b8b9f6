"""The recipe of the translator learns from little data, can be resumed, and is compared with its baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sacrebleu")
pytest.importorskip("rapidfuzz")

import torch

from models.recipes import translate_training as translate
from models.recipes.translate_baselines import WordByWord, nearest
from models.recipes.translate_data import Pair
from models.recipes.translate_judged import NUM_EXAMPLES, SENTENCES, write_evaluation
from models.recipes.translate_pieces import Pieces, learn
from models.training import TrainingConfig

COLOURS = {"red": "rot", "blue": "blau", "green": "gruen", "black": "schwarz", "white": "weiss", "grey": "grau"}
THINGS = {"house": "Haus", "boat": "Boot", "book": "Buch", "door": "Tor", "horse": "Pferd", "glass": "Glas"}
PAIRS = [
    Pair(f"the {thing} is {colour}", f"das {things} ist {colours}", "test")
    for thing, things in THINGS.items()
    for colour, colours in COLOURS.items()
]
HELD_OUT = [pair for index, pair in enumerate(PAIRS) if index % 7 == 3]
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]
SEEN += [Pair(f"the {thing}", f"das {things}", "test") for thing, things in THINGS.items()]
SIZES: dict[str, int | float] = {"hidden_size": 24, "embedding_size": 24, "attention_size": 24, "dropout": 0.0}
SHORT = TrainingConfig(epochs=3, learning_rate=1e-2, warmup_steps=2, average_decay=0.9)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, pairs in (("train", SEEN), ("validation", HELD_OUT), ("test", HELD_OUT)):
        lines = [f"{pair.english}\t{pair.german}\t{pair.source}\n" for pair in pairs]
        (folder / f"{split}.tsv").write_text("".join(lines))
    return folder


def test_pieces_spell_what_was_cut(tmp_path: Path) -> None:
    pieces = Pieces(learn(SEEN))
    texts = [pair.german for pair in PAIRS] + ["Zwölf €"]
    assert [pieces.text(ids) for ids in pieces.cut(texts)] == texts
    drawn = pieces.cut_at_random(texts, seed=3, smoothness=0.2)
    assert [pieces.text(ids) for ids in drawn] == texts
    assert drawn == pieces.cut_at_random(texts, seed=3, smoothness=0.2), "the same seed draws the same"
    assert drawn != pieces.cut_at_random(texts, seed=4, smoothness=0.2)
    assert learn(SEEN) == pieces.content


def test_batches_have_sources_of_one_length_and_every_pair_once() -> None:
    pieces = Pieces(learn(SEEN))
    batches = translate.make_batches(pieces, SEEN, seed=1)
    assert sum(len(source) for source, _, _ in batches) == len(SEEN)
    for source, inputs, expected in batches:
        assert not (source == 0).any()
        assert torch.equal(inputs[:, 1:][inputs[:, 1:] > 0], expected[(expected > 0) & (expected != 2)])
    again = translate.make_batches(pieces, SEEN, seed=1)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches, again, strict=True))


def test_the_recipe_trains_resumes_and_is_evaluated(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    translate.train(run, corpus, SHORT, SIZES)
    history = json.loads((run / "history.json").read_text())
    assert len(history) == 3
    assert history[-1]["validation_error"] < history[0]["validation_error"]
    translate.train(run, corpus, SHORT, SIZES)
    assert json.loads((run / "history.json").read_text()) == history, "a run that is over is not begun again"
    model = translate.load_model(run / "best.safetensors")
    assert model.encoder.embedding.weight is model.decoder.logits.weight
    found = write_evaluation(run / "best.safetensors", corpus)
    assert found["num_test_pairs"] == len(HELD_OUT)
    assert found == json.loads((run / "evaluation.json").read_text())
    word_by_word = found["word_by_word"]
    assert isinstance(word_by_word, dict)
    assert word_by_word["bleu"] == 100.0, "these languages have the same order of words"
    sentences, examples = found["sentences"], found["examples"]
    assert isinstance(sentences, list)
    assert [english for english, _ in sentences] == list(SENTENCES)
    assert isinstance(examples, list)
    assert len(examples) == min(NUM_EXAMPLES, len(HELD_OUT))
    assert {(english, german) for english, _, german in examples} <= {(one.english, one.german) for one in HELD_OUT}


def test_a_sentence_of_the_card_must_not_be_in_the_corpus(corpus: Path, tmp_path: Path) -> None:
    translate.train(tmp_path, corpus, replace(SHORT, epochs=1), SIZES)
    with (corpus / "train.tsv").open("a") as file:
        file.write(f"{SENTENCES[0].upper()}\tegal\ttest\n")
    with pytest.raises(ValueError, match="battery"):
        write_evaluation(tmp_path / "best.safetensors", corpus)


def test_baselines() -> None:
    words = WordByWord(SEEN)
    assert [words.translate(pair.english) for pair in HELD_OUT] == [pair.german for pair in HELD_OUT]
    assert words.translate("the zebra is red.") == "das zebra ist rot."
    assert nearest(SEEN, ["the house is reddish"]) == ["das Haus ist rot"]

"""Text is cut into subwords by a SentencePiece model, whose pieces are the tokens of the vocabulary."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from export.vocabulary import Vocabulary as Exported
from service.errors import EmptySequenceError, SequenceTooLongError, UnknownTokenError
from service.repository.manifest import VocabularySpec
from service.repository.vocabulary import Vocabulary
from tests.subwords import model


def load(folder: Path, *, byte_fallback: bool = True) -> Vocabulary:
    exported = Exported.of_subwords(model(byte_fallback=byte_fallback))
    for name, content in exported.files("target.txt").items():
        (folder / name).write_bytes(content)
    return Vocabulary.load(folder / "target.txt", exported.spec("target.txt"), owner="the vocabulary of a translator")


@pytest.mark.parametrize("text", ["the house", "  the   old\tmice ", "Ünder €", "the\u00a0house \U0001f42d"])
def test_a_text_is_cut_as_sentencepiece_cuts_it(tmp_path: Path, text: str) -> None:
    expected = SentencePieceProcessor(model_proto=model()).encode(text)
    assert load(tmp_path).ids_of_text(text, field="text") == expected


def test_the_tokens_are_the_pieces(tmp_path: Path) -> None:
    vocabulary = load(tmp_path)
    assert vocabulary.names[:5] == ("<pad>", "<s>", "</s>", "<unk>", "<0x00>")
    assert "".join(vocabulary.names[one] for one in vocabulary.ids_of_text("the mice", field="text")) == "▁the▁mice"


def test_a_character_that_no_piece_has_is_refused_by_name_without_bytes(tmp_path: Path) -> None:
    with pytest.raises(UnknownTokenError) as refusal:
        load(tmp_path, byte_fallback=False).ids_of_text("the 字", field="source.text")
    assert refusal.value.field.startswith("source.text[")
    assert "] = '字' is not in the vocabulary of a translator" in refusal.value.message


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_a_piece_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(EmptySequenceError):
        load(tmp_path).ids_of_text(text, field="source.text")


def test_the_limit_counts_pieces(tmp_path: Path) -> None:
    vocabulary = load(tmp_path)
    ids = vocabulary.ids_of_text("the smallest Freiheit", field="text")
    assert vocabulary.ids_of_text("the smallest Freiheit", field="text", limit=len(ids)) == ids
    with pytest.raises(SequenceTooLongError, match=f"^text has {len(ids)} tokens, the limit is {len(ids) - 1}"):
        vocabulary.ids_of_text("the smallest Freiheit", field="text", limit=len(ids) - 1)


@pytest.mark.parametrize("text", ["a" * 4_000_000, "a " * 2_000_000, "\N{GRINNING FACE}" * 1_000_000])
def test_a_text_of_megabytes_is_refused_at_once(tmp_path: Path, text: str) -> None:
    vocabulary, took = load(tmp_path), []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(SequenceTooLongError):
            vocabulary.ids_of_text(text, field="prompt.text", limit=48)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.03, "cutting it takes ten times as long"


def test_a_tokens_size_includes_its_text(tmp_path: Path) -> None:
    """The limit on a generation's messages counts the text of each token too."""
    vocabulary = load(tmp_path)
    plain = Vocabulary(vocabulary.names, owner="", tokenizer="whitespace", lowercase=False)
    longest = max(len(name.replace("▁", " ").encode()) for name in vocabulary.names if not name.startswith("<"))
    assert vocabulary.max_token_bytes == plain.max_token_bytes + longest


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "target.subwords").write_bytes(b"no model")
    spec = Exported.of_subwords(model()).spec("target.txt")
    with pytest.raises(ValueError, match=r"target\.subwords is not a SentencePiece model"):
        Vocabulary.load(tmp_path / "target.txt", spec, owner="the vocabulary")


def test_a_model_of_other_pieces_is_refused(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "target.subwords").write_bytes(model(num_pieces=300))
    spec = Exported.of_subwords(model()).spec("target.txt")
    with pytest.raises(
        ValueError, match=r"the \d+ pieces of target.subwords differ from the \d+ tokens of the vocabulary"
    ):
        Vocabulary.load(tmp_path / "target.txt", spec, owner="the vocabulary")


@pytest.mark.parametrize(("tokenizer", "subwords"), [("subword", None), ("characters", "target.subwords")])
def test_the_model_and_the_tokenizer_go_together(tokenizer: str, subwords: str | None) -> None:
    with pytest.raises(ValueError, match="subwords must be given exactly when tokenizer is subword"):
        VocabularySpec.model_validate({"file": "target.txt", "size": 9, "tokenizer": tokenizer, "subwords": subwords})


def test_a_manifest_without_subwords_says_nothing_of_them() -> None:
    spec = VocabularySpec(file="target.txt", size=9, tokenizer="characters")
    assert "subwords" not in spec.model_dump(mode="json")

"""Token names become ids and back, text becomes ids, and unknown names are refused with a clear message."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import EmptySequenceError, SequenceTooLongError, TokenOutOfVocabularyError, UnknownTokenError
from service.repository.manifest import VocabularySpec
from service.repository.vocabulary import Vocabulary

LETTERS = ("<pad>", "a", "b", "c", "'", "é", "i", "ß", "d")
PHONEMES = ("<pad>", "<s>", "</s>", "AA", "B", "K")
IDS = st.integers(0, len(LETTERS) - 1)


def letters(*, lowercase: bool = True) -> Vocabulary:
    return Vocabulary(LETTERS, owner="the source vocabulary of g2p", tokenizer="characters", lowercase=lowercase)


def phonemes() -> Vocabulary:
    return Vocabulary(PHONEMES, owner="the vocabulary of g2p", tokenizer="whitespace", lowercase=False)


@given(st.lists(IDS))
@settings(max_examples=50, deadline=None)
def test_names_and_ids_are_each_others_inverse(ids: list[int]) -> None:
    vocabulary = letters()
    assert vocabulary.ids_of([vocabulary.names[token_id] for token_id in ids], field="names") == ids
    assert vocabulary.check_ids(ids, field="ids") == ids
    assert len(vocabulary) == len(LETTERS)


@given(st.lists(st.integers(-3, 12), max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_first_id_outside_is_named_with_its_place_and_the_range(ids: list[int]) -> None:
    wrong = [(place, token_id) for place, token_id in enumerate(ids) if not 0 <= token_id <= 8]
    if not wrong:
        assert letters().check_ids(ids, field="feed.token_ids") == ids
        return
    place, token_id = wrong[0]
    with pytest.raises(TokenOutOfVocabularyError) as refusal:
        letters().check_ids(ids, field="feed.token_ids")
    assert refusal.value.message == (
        f"feed.token_ids[{place}] = {token_id} is outside the source vocabulary of g2p (0 to 8)"
    )
    assert refusal.value.field == f"feed.token_ids[{place}]"


def test_the_first_name_that_is_unknown_is_named_with_its_place() -> None:
    with pytest.raises(UnknownTokenError) as refusal:
        phonemes().ids_of(["K", "AA", "k", "ZZ"], field="feed.tokens")
    assert refusal.value.message == "feed.tokens[2] = 'k' is not in the vocabulary of g2p"
    assert refusal.value.field == "feed.tokens[2]"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("cab", [3, 1, 2]),
        ("a'b", [1, 4, 2]),
        ("CaB", [3, 1, 2]),
        ("CAFÉ".replace("F", ""), [3, 1, 5]),
        ("ẞ", [7]),
    ],
)
def test_text_is_split_into_characters_after_lower_casing(text: str, ids: list[int]) -> None:
    """Apostrophes and accented letters are ordinary characters."""
    assert letters().ids_of_text(text, field="source.text") == ids


def test_text_keeps_its_case_where_the_bundle_wants_that() -> None:
    with pytest.raises(UnknownTokenError) as refusal:
        letters(lowercase=False).ids_of_text("aB", field="source.text")
    assert refusal.value.message == "source.text[1] = 'B' is not in the source vocabulary of g2p"


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("ca7", 2, "'7'"),
        ("c a", 1, "' '"),
        ("a\nb", 1, "'\\n'"),
        ("日", 0, "'日'"),
        ("ab🎠", 2, "'🎠'"),
        ("Bq", 1, "'q'"),
        # é as e and a combining accent is two characters, neither of them é
        ("ae\u0301", 1, "'e'"),
        # the lower case of İ is two characters
        ("\u0130", 1, "'\u0307'"),
        ("\x00", 0, "'\\x00'"),
    ],
)
def test_the_first_character_that_is_unknown_is_named_with_its_place(text: str, place: int, shown: str) -> None:
    with pytest.raises(UnknownTokenError) as refusal:
        letters().ids_of_text(text, field="source.text")
    assert refusal.value.message == f"source.text[{place}] = {shown} is not in the source vocabulary of g2p"
    assert refusal.value.field == f"source.text[{place}]"


@pytest.mark.parametrize("text", ["K AA B", "  K\tAA\n B ", "K\u3000AA B"])
def test_text_is_split_at_white_space_where_the_bundle_wants_that(text: str) -> None:
    assert phonemes().ids_of_text(text, field="prompt.text") == [5, 3, 4]


@pytest.mark.parametrize(("vocabulary", "text"), [(letters(), ""), (phonemes(), ""), (phonemes(), " \t\n ")])
def test_text_without_a_token_is_refused(vocabulary: Vocabulary, text: str) -> None:
    with pytest.raises(EmptySequenceError) as refusal:
        vocabulary.ids_of_text(text, field="source.text")
    assert refusal.value.message == "source.text is empty: it must have 1 token or more"
    assert refusal.value.field == "source.text"


@given(st.text(max_size=20) | st.text("abcé'AB", max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_ids_or_a_refusal_that_names_what_is_there(text: str) -> None:
    """The place that a refusal names is that of the character that it shows, in the lower-cased text."""
    folded = text.lower()
    unknown = next((place for place, character in enumerate(folded) if character not in LETTERS), None)
    if not text:
        with pytest.raises(EmptySequenceError):
            letters().ids_of_text(text, field="text")
    elif unknown is None:
        assert "".join(LETTERS[token_id] for token_id in letters().ids_of_text(text, field="text")) == folded
    else:
        with pytest.raises(UnknownTokenError) as refusal:
            letters().ids_of_text(text, field="text")
        assert refusal.value.field == f"text[{unknown}]"
        assert refusal.value.message.startswith(f"text[{unknown}] = {folded[unknown]!r} is not in ")


@pytest.mark.parametrize(
    ("text", "is_told"),
    [("1,2,0", True), ("1, 2, 0", True), ("0 1,2", True), ("1,7", False), ("7,1", False), ("7", False)],
)
def test_ids_with_commas_are_refused_with_a_hint(text: str, is_told: bool) -> None:
    numbers = Vocabulary(("0", "1", "2"), owner="the vocabulary of raw", tokenizer="whitespace", lowercase=False)
    with pytest.raises(UnknownTokenError) as refusal:
        numbers.ids_of_text(text, field="text")
    assert (
        refusal.value.message.endswith("is not in the vocabulary of raw: separate tokens with spaces, not commas")
        == is_told
    )
    with pytest.raises(UnknownTokenError, match=r"is not in the vocabulary of raw$"):
        numbers.ids_of(["1,2"], field="tokens")


def load(path: Path, content: str, size: int, tokenizer: Literal["characters", "whitespace"]) -> Vocabulary:
    path.write_text(content, encoding="utf-8")
    spec = VocabularySpec(file=path.name, size=size, tokenizer=tokenizer)
    return Vocabulary.load(path, spec, owner="the vocabulary of g2p")


def test_a_file_is_read_one_token_a_line(tmp_path: Path) -> None:
    vocabulary = load(tmp_path / "target.txt", "<pad>\né\n'\n", 3, "characters")
    assert vocabulary.names == ("<pad>", "é", "'")
    assert vocabulary.ids_of_text("'é", field="text") == [2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n", "target.txt has 2 lines, but the manifest says 3"),
        ("a\nb\nc\nd\n", "target.txt has 4 lines, but the manifest says 3"),
        ("", "target.txt has 0 lines, but the manifest says 3"),
        ("a\nb\na\n", "target.txt has the token 'a' twice"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        load(tmp_path / "target.txt", content, 3, "characters")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """It raises ValueError: the bundle becomes a problem, and the server continues."""
    (tmp_path / "target.txt").write_bytes(b"a\n\xff\n")
    spec = VocabularySpec(file="target.txt", size=2, tokenizer="characters")
    with pytest.raises(ValueError, match=r"^target\.txt is not UTF-8 text: "):
        Vocabulary.load(tmp_path / "target.txt", spec, owner="the vocabulary of g2p")


ESCAPED = "<unk>\n\\n\n \n\\t\n\\\\\n\\\\n\n\\u2028\na\n"
UNESCAPED = ("<unk>", "\n", " ", "\t", "\\", "\\n", "\u2028", "a")


def _load(folder: Path, text: str, **fields: bool | int) -> Vocabulary:
    (folder / "names.txt").write_text(text, encoding="utf-8")
    spec = VocabularySpec(file="names.txt", size=len(text.splitlines()), tokenizer="characters", **fields)
    return Vocabulary.load(folder / "names.txt", spec, owner="the vocabulary")


def test_escaped_lines_are_any_characters(tmp_path: Path) -> None:
    """The characters include line feeds, white space, backslashes, and what other programs read as the end of a
    line."""
    assert _load(tmp_path, ESCAPED, escaped=True).names == UNESCAPED
    assert _load(tmp_path, ESCAPED).names == tuple(ESCAPED.split("\n")[:-1]), "only where the manifest says so"


@pytest.mark.parametrize("line", ["\\", "\\x", "\\u12", "a\\", "\\u00GG"])
def test_a_line_that_is_escaped_otherwise_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="with an invalid escape"):
        _load(tmp_path, f"a\n{line}\n", escaped=True)


def test_unknown_text_becomes_the_unknown_token(tmp_path: Path) -> None:
    vocabulary = _load(tmp_path, ESCAPED, escaped=True, unknown_id=0)
    assert vocabulary.ids_of_text("a\né a", field="text") == [7, 1, 0, 2, 7]
    assert vocabulary.ids_of(["<unk>", "zz"], field="tokens") == [0, 0]
    assert vocabulary.ids_of(["<unk>"], field="stop_tokens", is_exact=True) == [0]
    with pytest.raises(UnknownTokenError, match=r"stop_tokens\[1\] = 'zz' is not in"):
        vocabulary.ids_of(["<unk>", "zz"], field="stop_tokens", is_exact=True)
    with pytest.raises(UnknownTokenError):
        _load(tmp_path, ESCAPED, escaped=True).ids_of_text("é", field="text")


@pytest.mark.parametrize("tokenizer", ["characters", "whitespace"])
@pytest.mark.parametrize(
    "text", ["a" * 4_000_000, "a " * 2_000_000, "\N{GRINNING FACE}" * 1_000_000], ids=["one", "many", "wide"]
)
def test_a_text_of_megabytes_is_refused_at_once(tokenizer: str, text: str) -> None:
    vocabulary = Vocabulary(["a", "b"], owner="v", tokenizer=tokenizer, lowercase=True)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises((SequenceTooLongError, UnknownTokenError)) as refusal:
            vocabulary.ids_of_text(text, field="prompt.text", limit=48)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.03, "looking at two million words takes ten times as long"
    assert len(str(refusal.value)) < 400


def test_a_text_within_its_limit_is_read_as_without_one() -> None:
    vocabulary = Vocabulary(["a", "b"], owner="v", tokenizer="whitespace", lowercase=True, unknown_id=1)
    assert vocabulary.ids_of_text("A  b\nlong ", field="f", limit=3) == [0, 1, 1]
    with pytest.raises(SequenceTooLongError, match=r"^f has more than 3 tokens, the limit is 3$"):
        vocabulary.ids_of_text("a b a b", field="f", limit=3)

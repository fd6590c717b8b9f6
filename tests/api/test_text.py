"""The text of generated subwords depends on the last tokens only, from whichever position it continues."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.text import Text
from service.engine.last_tokens import LastTokens
from service.repository.steps import HISTORY
from service.repository.subwords import Subwords
from tests.subwords import model

SUBWORDS = Subwords(model())
BYTES = [index for index, piece in enumerate(SUBWORDS.pieces) if piece.startswith("<0x")]
WORDS = [index for index, begins in enumerate(SUBWORDS.begins_word) if begins]
OTHERS = [index for index, piece in enumerate(SUBWORDS.pieces) if index not in BYTES and index not in WORDS]
TOKENS = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(OTHERS),
        st.sampled_from(BYTES),
        st.sampled_from([SUBWORDS.pieces.index(f"<0x{byte:02X}>") for byte in "€ß".encode()]),
    ),
    max_size=40,
)
LONG = st.lists(st.sampled_from([*OTHERS, *BYTES]), min_size=HISTORY - 2, max_size=3 * HISTORY)


def before(tokens: list[int]) -> LastTokens:
    """Returns what a session keeps of these tokens."""
    return LastTokens(len(tokens), tokens[max(0, len(tokens) - HISTORY) :])


def spelt(tokens: list[int]) -> bytes:
    whole = b"".join(SUBWORDS.spelt[token] for token in tokens)
    return whole.removeprefix(b" ") if tokens and SUBWORDS.begins_word[tokens[0]] else whole


@settings(deadline=None)
@given(TOKENS)
def test_the_text_of_all_is_what_sentencepiece_decodes(tokens: list[int]) -> None:
    """This holds where the bytes are valid UTF-8. Otherwise the two differ in their replacement characters."""
    text = Text(SUBWORDS, LastTokens(0, []))
    whole = text.add(tokens) + text.unfinished
    try:
        assert whole == spelt(tokens).decode()
    except UnicodeDecodeError:
        assert len(whole) <= len(spelt(tokens))


@settings(deadline=None, max_examples=300)
@given(st.one_of(TOKENS, LONG.flatmap(lambda run: TOKENS.map(lambda few: [*few, *run, *few]))), st.data())
def test_the_text_continues_from_any_position(tokens: list[int], data: st.DataObject) -> None:
    """The tokens are cut anywhere, and each part begins from what a session keeps there. The joined parts equal the
    whole."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    whole = Text(SUBWORDS, LastTokens(0, []))
    expected = whole.add(tokens)
    found, begin = "", 0
    for end in [*cuts, len(tokens)]:
        part = Text(SUBWORDS, before(tokens[:begin]))
        found += part.add(tokens[begin:end])
        begin = end
    assert found == expected
    assert Text(SUBWORDS, before(tokens)).unfinished == whole.unfinished


@settings(deadline=None)
@given(TOKENS, TOKENS)
def test_returned_text_is_never_changed(tokens: list[int], more: list[int]) -> None:
    text = Text(SUBWORDS, before(tokens))
    unfinished = text.unfinished
    if any(SUBWORDS.begins_word[token] for token in more):
        assert text.add(more).startswith(unfinished)


def test_a_word_is_returned_when_the_next_word_begins() -> None:
    pieces = SUBWORDS.pieces
    ids = [pieces.index(one) for one in ("▁m", "ouse", "▁house", "s")]
    text = Text(SUBWORDS, LastTokens(0, []))
    assert [text.add([one]) for one in ids] == ["", "", "mouse", ""]
    assert text.unfinished == " houses"


def test_a_character_waits_for_its_last_byte() -> None:
    euro = [SUBWORDS.pieces.index(f"<0x{byte:02X}>") for byte in "€".encode()]
    text = Text(SUBWORDS, LastTokens(0, []))
    text.add(euro[:2])
    assert text.unfinished == ""
    text.add(euro[2:])
    assert text.unfinished == "€"


def test_a_very_long_word_is_returned_in_parts() -> None:
    letter = OTHERS[-1]
    text = Text(SUBWORDS, LastTokens(0, []))
    assert text.add([letter] * HISTORY) == ""
    assert text.add([letter]) == SUBWORDS.pieces[letter] * (HISTORY + 1)
    assert text.add([letter]) == SUBWORDS.pieces[letter]
    assert text.unfinished == ""

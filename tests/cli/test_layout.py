"""Tables: on a pipe, one line for each row; on a terminal, wrapped between words. No word is ever split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from carousel.cli.layout import lines_of

COLUMNS = ("NAME", "SIZE#", "ABOUT")
ROWS = [("pychar-en", 3, "Python source, character by character"), ("a", 12, "")]
WORDS = st.text("abc-日é", min_size=1, max_size=12)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


def test_without_a_terminal_each_row_is_a_line() -> None:
    assert lines_of(COLUMNS, ROWS, None) == [
        "NAME       SIZE  ABOUT",
        "pychar-en     3  Python source, character by character",
        "a            12  -",
    ]


def test_a_table_that_is_too_wide_wraps_between_words() -> None:
    assert lines_of(COLUMNS, ROWS, 40) == [
        "NAME       SIZE  ABOUT",
        "pychar-en     3  Python source,",
        "                 character by character",
        "a            12  -",
    ]


def test_a_table_whose_words_are_too_wide_is_a_list() -> None:
    assert lines_of(COLUMNS, ROWS, 24) == [
        "NAME   pychar-en",
        "SIZE   3",
        "ABOUT  Python source,",
        "       character by",
        "       character",
        "",
        "NAME   a",
        "SIZE   12",
        "ABOUT  -",
    ]


def test_a_list_omits_values_without_name_and_text() -> None:
    assert lines_of(("NEXT", ""), [("a" * 20, "##"), ("b", "")], 10) == ["NEXT  " + "a" * 20, "      ##", "", "NEXT  b"]


def test_control_characters_are_escaped() -> None:
    assert lines_of(("NAME",), [("\x1b[31mred\nline",)], None)[1] == "\\x1b[31mred\\nline"


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 60)))
def test_no_word_is_split_and_no_line_is_wider_than_the_terminal_unless_a_word_is(
    rows: list[tuple[str, str]], width: int | None
) -> None:
    lines = lines_of(("A", "B"), rows, width)
    words = [word for line in lines for word in line.split()]
    for row in rows:
        for word in " ".join(row).split():
            assert word in words
    if width is None:
        assert len(lines) == 1 + len(rows)
        return
    longest = max(cell_len(word) for word in ["A", *words])
    margin = len("A  ")
    assert max(map(cell_len, lines)) <= max(width, margin + max(longest, 8))

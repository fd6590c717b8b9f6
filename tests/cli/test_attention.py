"""Attention drawn as text."""

from __future__ import annotations

import math

import pytest

from carousel.cli.attention import ASCII, Attention, drawn, shades_in


def test_a_cell_is_as_wide_as_its_label_and_as_dark_as_its_weight() -> None:
    attention = Attention(["one", "a", "\u732b\u732b"], ["x", "long"], [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    assert drawn(attention, width=40) == [
        "     one a  \u732b\u732b",
        "   x ███",
        "long ░░░ ░░ ▒▒▒▒",
        "",
        "░ 25 %  ▒ 50 %  ▓ 75 %  █ 100 % of a row's attention, rounded",
    ]


@pytest.mark.parametrize(
    ("weight", "shade"),
    [(0.0, ""), (0.12, ""), (0.13, ".."), (0.5, "::"), (0.75, "**"), (1.0, "##"), (1.01, "##"), (-1.0, "")],
)
def test_weights_are_rounded_to_the_nearest_shade(weight: float, shade: str) -> None:
    assert drawn(Attention(["a"], ["b"], [[weight]]), width=40, shades=ASCII)[1] == f"b {shade}".rstrip()


def test_a_nan_weight_is_drawn_empty() -> None:
    assert drawn(Attention(["a"], ["b"], [[math.nan]]), width=40)[1] == "b"


def test_a_source_that_is_wider_than_the_lines_is_drawn_in_parts() -> None:
    """Each part has all rows, and no label is split."""
    words = [f"word{number}" for number in range(10)]
    rows = [[float(at == row) for at in range(10)] for row in range(10)]
    lines = drawn(Attention(words, words, rows), width=30)
    assert max(map(len, lines[:-1])) <= 30
    parts = "\n".join(lines[:-1]).strip("\n").split("\n\n")
    assert [part.splitlines()[0].split() for part in parts] == [words[:4], words[4:8], words[8:]]
    assert [len(part.splitlines()) for part in parts] == [11] * 3
    assert sum(part.count("█") for part in parts) == 10 * len("word0")


def test_labels_are_escaped_and_cut() -> None:
    lines = drawn(Attention(["a\n\x1b"], ["b" * 30], [[1.0]]), width=40)
    assert lines[0].split() == ["a??"]
    assert lines[1] == f"{'b' * 23}… ███"


def test_nothing_can_be_drawn() -> None:
    assert len(drawn(Attention([], [], []), width=40)) == 1


def test_pieces_are_put_together_into_words() -> None:
    """Weights are summed over the pieces of a source word, and averaged over the pieces of a target word."""
    source = ["▁don", "'", "t", "▁(", "open", ")", "."]
    target = ["▁", "<0xC3>", "<0xBC>", "ber", "-", "all", "!", "</s>"]
    rows = [[0.0] * 7 for _ in target]
    for row in rows[:6]:
        row[0], row[1], row[6] = 0.5, 0.25, 0.25
    rows[5] = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    words = Attention(source, target, rows).of_words()
    assert words.source == ["don't", "(", "open", ")", "."]
    assert words.target == ["über-all", "!", "</s>"]
    assert words.weights[0] == pytest.approx([0.75 * 5 / 6, 0.0, 1 / 6, 0.0, 0.25 * 5 / 6])
    assert words.weights[1] == [0.0] * 5


def test_marks_alone_and_broken_bytes_are_words() -> None:
    pieces = ["▁...", ".", "▁%1", "▁", "<0xE2>", "<s>", "word"]
    assert Attention(pieces, [], []).of_words().source == ["...", ".", "%1", "\ufffd", "<s>", "word"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no such", None])
def test_shades_are_ascii_where_blocks_cannot_be_written(encoding: str | None) -> None:
    assert shades_in(encoding) == ASCII


def test_shades_are_blocks_elsewhere() -> None:
    assert shades_in("utf-8") == " ░▒▓█"

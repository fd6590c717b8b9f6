"""Messages become pairs of plain text, and messages that are not translations are left out."""

from __future__ import annotations

import pytest

from models.recipes.translate_clean import clean, is_pair


@pytest.mark.parametrize(
    ("english", "german", "pairs"),
    [
        ("Open &File...", "&Datei öffnen...", [("Open File...", "Datei öffnen...")]),
        ("Save the ~Image", "~Bild speichern", [("Save the Image", "Bild speichern")]),
        ("_Close window", "Fenster sch_ließen", [("Close window", "Fenster schließen")]),
        ("Open from path...", "Von Pfad öffnen …", [("Open from path...", "Von Pfad öffnen...")]),
        ("Search &amp; replace", "Suchen &amp; ersetzen", [("Search & replace", "Suchen & ersetzen")]),
        ("<b>Print</b> all pages:", "Alle Seiten <b>drucken</b>:", [("Print all pages", "Alle Seiten drucken")]),
        (
            "Open the 'File' menu",
            "Öffnen Sie das Menü »Datei«",
            [('Open the "File" menu', 'Öffnen Sie das Menü "Datei"')],
        ),
        ("- No file\n  selected\n", "- Keine Datei\n  ausgewählt\n", [("No file selected", "Keine Datei ausgewählt")]),
    ],
)
def test_markup_accelerators_and_lines_are_removed(english: str, german: str, pairs: list[tuple[str, str]]) -> None:
    assert list(clean(english, german)) == pairs


@pytest.mark.parametrize(
    ("english", "german", "pair"),
    [
        ("cannot open %s", "kann %s nicht öffnen", ("cannot open %1", "kann %1 nicht öffnen")),
        ("%s has %d pages", "%2$d Seiten hat %1$s", ("%1 has %2 pages", "%2 Seiten hat %1")),
        ("%(user)s now likes %(name)s", "%(name)s mag %(user)s", ("%1 now likes %2", "%2 mag %1")),
        ("Move {count} to {place}", "Nach {place}: {count} legen", ("Move %1 to %2", "Nach %2: %1 legen")),
        ("Copy $1 of $2 files", "$1 von $2 Dateien kopieren", ("Copy %1 of %2 files", "%1 von %2 Dateien kopieren")),
        ("The path [{0}] is bad", "Der Pfad [{0}] ist schlecht", ("The path %1 is bad", "Der Pfad %1 ist schlecht")),
        (
            "${ user } must not be in %(a_b)s",
            "%(a_b)s darf ${ user } nicht haben",
            ("%1 must not be in %2", "%2 darf %1 nicht haben"),
        ),
    ],
)
def test_directives_are_numbered_as_the_english_text_has_them(english: str, german: str, pair: tuple[str, str]) -> None:
    assert list(clean(english, german)) == [pair]


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("cannot open %s", "kann nicht geöffnet werden"),
        ("%(user)s was here", "%(name)s war hier"),
        ("{count, plural, one {# file} other {# files}}", "{count, plural, one {# Datei} other {# Dateien}}"),
        ("%s %s and %s or %s", "%s %s und %s oder %s"),
    ],
)
def test_directives_that_differ_or_are_many_leave_no_pair(english: str, german: str) -> None:
    assert not list(clean(english, german))


def test_sentences_are_paired_where_both_sides_have_as_many() -> None:
    """The full stop of an abbreviation does not end a sentence. If the numbers of sentences differ, the message is one
    pair."""
    english = "Enter a name, e.g. Peter. Then press the button."
    german = "Geben Sie einen Namen ein, z. B. Peter. Drücken Sie dann den Knopf."
    assert list(clean(english, german)) == [
        ("Enter a name, e.g. Peter.", "Geben Sie einen Namen ein, z. B. Peter."),
        ("Then press the button.", "Drücken Sie dann den Knopf."),
    ]
    joined = "Geben Sie einen Namen ein, und drücken Sie dann den Knopf."
    assert list(clean("Enter a name. Then press the button.", joined)) == [
        ("Enter a name. Then press the button.", joined)
    ]


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("Open", "Öffnen"),
        ("Open file", ""),
        ("Open file", "Open file"),
        ("The file is not there", "The Datei is not da"),
        ("Reset the network adapter driver", "Network adapter driver zurücksetzen reset"),
        ("Die Datei ist nicht offen", "Die Datei wurde geschlossen"),
        ("Größe der Datei", "Dateigröße"),
        ("Open file", "Открыть файл"),
        ("Open file", "Öffnet eine Datei, die irgendwo auf diesem Rechner liegt"),
        ("An explanation of a rather long kind", "Nein"),
        ("see https://example.org for more", "mehr unter https://example.org"),
        ("call os.open(path) again", "noch einmal os.open(path) aufrufen"),
        ("1 2 3 4 of 5 6 7", "1 2 3 4 aus 5 6 7"),
        (" ".join(["very"] * 21), " ".join(["sehr"] * 21)),
    ],
)
def test_what_is_no_translation_of_a_phrase_is_left_out(english: str, german: str) -> None:
    assert not is_pair(english, german)


def test_short_and_long_phrases_are_pairs() -> None:
    assert is_pair("Printer settings", "Druckereinstellungen")
    assert is_pair("Read " + " ".join(["word"] * 19), "Lies " + " ".join(["Wort"] * 19))

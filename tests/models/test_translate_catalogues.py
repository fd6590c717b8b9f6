"""Catalogues are read in every format that the sources use."""

from __future__ import annotations

import json
import struct

import pytest

pytest.importorskip("polib")
pytest.importorskip("fluent.syntax")

import polib

from models.recipes.translate_catalogues import messages


def read(contents: dict[str, str | bytes]) -> list[tuple[str, str]]:
    return list(messages({path: text.encode() if isinstance(text, str) else text for path, text in contents.items()}))


def catalogue() -> polib.POFile:
    """Returns a catalogue with a message in a context, one with a plural, a doubtful one and an obsolete one."""
    made = polib.POFile()
    made.metadata = {"Content-Type": "text/plain; charset=utf-8", "Plural-Forms": "nplurals=2; plural=(n != 1);"}
    made.append(polib.POEntry(msgctxt="menu", msgid="Open file", msgstr="Datei öffnen"))
    made.append(polib.POEntry(msgid="%d page", msgid_plural="%d pages", msgstr_plural={0: "%d Seite", 1: "%d Seiten"}))
    made.append(polib.POEntry(msgid="Close file", msgstr="Datei öffnen", flags=["fuzzy"]))
    made.append(polib.POEntry(msgid="Lose file", msgstr="Datei verlieren", obsolete=True))
    return made


@pytest.mark.parametrize(
    ("path", "binary"),
    [
        ("usr/share/locale/de/LC_MESSAGES/a.mo", True),
        ("pack/locale/de_DE/LC_MESSAGES/a.po", False),
        ("share/locale/de/a_de.po", False),
    ],
)
def test_gettext_is_read_with_plurals_and_without_what_is_doubtful(path: str, binary: bool) -> None:
    data = catalogue().to_binary() if binary else str(catalogue())
    expected = [("Open file", "Datei öffnen"), ("%d page", "%d Seite"), ("%d pages", "%d Seiten")]
    assert sorted(read({path: data, path.replace("/de", "/fr").replace("_de", "_fr"): data})) == sorted(expected)


@pytest.mark.parametrize(
    ("german", "english"),
    [
        ("a/translations/de.json", "a/translations/en.json"),
        ("a/locales/de/editor.json", "a/locales/en-US/editor.json"),
        ("a/strings/de_DE.json", "a/strings/en_EN.json"),
        (f"t/config/de-{'0' * 32}.json", f"t/config/en-{'1' * 32}.json"),
    ],
)
def test_json_is_paired_with_the_file_whose_path_says_english(german: str, english: str) -> None:
    files: dict[str, str | bytes] = {
        german: json.dumps({"a": {"b": "Ja", "c": "Nein"}, "only": "Nur", "number": 1}),
        english: json.dumps({"a": {"b": "Yes", "c": "No"}, "number": 1}),
        "other/" + english: json.dumps({"a": {"b": "wrong"}}),
    }
    assert read(files) == [("Yes", "Ja"), ("No", "Nein")]


def test_properties_are_read_with_escapes_and_continued_lines() -> None:
    files: dict[str, str | bytes] = {
        "a/text_de.properties": "# Titel=x\nopen = Datei \\u00f6ffnen\nlong: eins \\\n   zwei\n".encode("latin-1"),
        "a/text.properties": "open=Open file\nlong=one two\n",
    }
    assert read(files) == [("Open file", "Datei öffnen"), ("one two", "eins zwei")]


def test_fluent_is_read_without_keys_of_the_keyboard() -> None:
    """The files of a language pack are one folder deeper than the English ones."""
    files: dict[str, str | bytes] = {
        "browser/localization/de/a.ftl": "menu = Datei\n    .label = { $name } öffnen\n    .accesskey = f\n",
        "localization/en-US/a.ftl": "menu = File\n    .label = Open { $name }\n    .accesskey = O\n",
    }
    assert read(files) == [("File", "Datei"), ("Open { $name }", "{ $name } öffnen")]


def pak(texts: dict[int, str], *, version: int = 5) -> bytes:
    data = [text.encode() for text in texts.values()]
    offset = 12 + 6 * (len(texts) + 1)
    table = b""
    for name, content in zip([*texts, 0], [*data, b""], strict=True):
        table += struct.pack("<HI", name, offset)
        offset += len(content)
    return struct.pack("<IBxxxHH", version, 1, len(texts), 0) + table + b"".join(data)


def test_packs_of_chromium_are_paired_by_number() -> None:
    files: dict[str, str | bytes] = {
        "l/de.pak": pak({7: "Fenster schließen", 9: "Nur deutsch"}),
        "l/en-US.pak": pak({3: "More", 7: "Close window"}),
    }
    assert read(files) == [("Close window", "Fenster schließen")]
    with pytest.raises(ValueError, match="pack of version 4"):
        read({"l/de.pak": pak({7: "a"}, version=4), "l/en-US.pak": pak({7: "b"})})


def test_pages_of_help_are_paired_by_paragraph_without_what_is_of_macos() -> None:
    page = '<p id="par_id1">{} <span>{}<span class="MAC"><b>Cmd</b></span><span>{}</span></span></p><p id="x">{}</p>'
    files: dict[str, str | bytes] = {
        "help/de/a.html": page.format("Drücken Sie", "die Taste ", "Strg", "nichts"),
        "help/en-US/a.html": page.format("Press", "the key ", "Ctrl", "nothing"),
    }
    assert read(files) == [("Press the key Ctrl", "Drücken Sie die Taste Strg")]


def test_texts_in_programs_are_paired_by_number_and_by_key() -> None:
    files: dict[str, str | bytes] = {
        "pack/main.i18n.json.js": 'var content = [\n\tundefined,\n\t"Schlie\\u00dfen: \\"{0}\\"",\n\t"Nur deutsch"\n];',
        "api/a.js": "x(localize(1, 'Close: \"{0}\"'), localize(\n  9, `none`))",
    }
    assert read(files) == [('Close: "{0}"', 'Schließen: "{0}"')]
    files = {
        "lib/de/diagnosticMessages.generated.json": '{"Type_expected_1110": "Typ erwartet."}',
        "lib/typescript.js": 'Type_expected: diag(1110, 1 /* Error */, "Type_expected_1110", "Type expected."),',
    }
    assert read(files) == [("Type expected.", "Typ erwartet.")]


def test_a_package_without_catalogues_has_no_messages() -> None:
    assert read({"a/b.txt": "x", "locale/de.json": "{}", "locale/fr.json": "{}", "guide.html": "<p>a</p>"}) == []

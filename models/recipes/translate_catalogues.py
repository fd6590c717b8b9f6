"""Reads catalogues: English messages and their German translations, as they stand in a package's files.

A package is a mapping of paths to bytes (`translate_fetch.contents`). German files are found by their names. The
English text is in the same file (gettext), or in the file whose path has the code of English where the German one has
that of German.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from itertools import pairwise

import polib
from fluent.syntax import FluentParser
from fluent.syntax import ast as fluent
from fluent.syntax.serializer import serialize_pattern

Contents = Mapping[str, bytes]
Message = tuple[str, str]
"""English, German."""

_GETTEXT = re.compile(r".*(?:/de(?:_DE)?/LC_MESSAGES/[^/]+|_de)\.(?P<kind>mo|po)")
_CODE = re.compile(r"(?<=[/_.-])de(?:[-_]DE)?(?:-[0-9a-f]{32})?(?=[/.])")
_ENGLISH = ("en", "en-US", "en_EN", "")
"""And no code at all."""
_BUILD = re.compile(r"(?<=[/_.-]en)-[0-9a-f]{32}(?=\.)")
_PROPERTY = re.compile(r"^[ \t]*([^#!\s=:][^=:\s]*)[ \t]*[=:][ \t]*((?:[^\\\n]|\\.|\\\n)*)", re.MULTILINE | re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|\n[ \t]*|(.))", re.DOTALL)
_STRING = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\$]|\\.)*`"
_LOCALIZE = re.compile(rf"\blocalize2?\(\s*(\d+),\s*({_STRING})")
_DIAGNOSTIC = re.compile(rf"\bdiag\(\d+, \d[^,]*, (\"[^\"]+\"), ({_STRING})")


def messages(contents: Contents) -> Iterator[Message]:
    """The messages of all catalogues of a package, file by file in the order of their paths. A package that is in none
    of the formats gives none. Raises what the libraries raise for a file that is not what its name says."""
    english = {_BUILD.sub("", path): path for path in contents}
    for path in sorted(contents):
        if match := _GETTEXT.fullmatch(path):
            yield from _gettext(contents[path], match["kind"])
            continue
        read = next((reader for suffix, reader in _READERS.items() if path.endswith(suffix)), None)
        twin = next((english[one] for one in _twins(path) if one in english), None)
        if read is not None and twin is not None:
            source, target = read(contents[twin]), read(contents[path])
            yield from ((source[key], text) for key, text in target.items() if key in source)
    yield from _program_texts(contents)


def _twins(path: str) -> Iterator[str]:
    """Where the English file of a German one may be: its path with every German code replaced, or so without its first
    folder, as in Mozilla's language packs."""
    if _CODE.search(path):
        for code in _ENGLISH:
            twin = _CODE.sub(code, path) if code else re.sub(r"[_.-]de(?:_DE)?(?=\.)", "", path)
            if twin != path:
                yield from (twin, twin.partition("/")[2])


def _gettext(data: bytes, kind: str) -> Iterator[Message]:
    read = polib.mofile if kind == "mo" else polib.pofile
    text = data if kind == "mo" else data.decode("utf-8")
    for entry in read(text):
        if entry.obsolete or "fuzzy" in entry.flags:
            continue
        if entry.msgid_plural:
            forms = entry.msgstr_plural
            yield from ((entry.msgid, forms.get(0, "")), (entry.msgid_plural, forms.get(1, "")))
        else:
            yield entry.msgid, entry.msgstr


def _json(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, str):
            found[path] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}/{key}")

    walk(json.loads(data), "")
    return found


def _properties(data: bytes) -> dict[str, str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return {key: _unescaped(value) for key, value in _PROPERTY.findall(text.replace("\r\n", "\n"))}


def _unescaped(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code, letter = match.groups()
        return chr(int(code, 16)) if code else {"n": "\n", "t": "\t", "r": ""}.get(letter, letter) if letter else ""

    return _ESCAPE.sub(plain, text)


def _fluent(data: bytes) -> dict[str, str]:
    found = {}
    for entry in FluentParser(with_spans=False).parse(data.decode("utf-8")).body:
        if isinstance(entry, fluent.Message):
            parts = [("", entry.value), *((f".{one.id.name}", one.value) for one in entry.attributes)]
            for name, pattern in parts:
                if pattern is not None and not name.endswith(("accesskey", "key", "style")):
                    found[entry.id.name + name] = serialize_pattern(pattern).strip()
    return found


def _pak(data: bytes) -> dict[str, str]:
    """A pack of Chromium's: a header, (id, offset) of each text and of the end, then the texts."""
    version, encoding = struct.unpack_from("<IB", data)
    if version != 5 or encoding != 1:
        raise ValueError(f"pack of version {version} and encoding {encoding}, not of version 5 in UTF-8")
    (count,) = struct.unpack_from("<H", data, 8)
    entries = [struct.unpack_from("<HI", data, 12 + 6 * index) for index in range(count + 1)]
    return {
        str(name): data[start:end].decode("utf-8", errors="replace") for (name, start), (_, end) in pairwise(entries)
    }


class _Paragraphs(HTMLParser):
    """The text of every element that has the id of a paragraph: LibreOffice's help has the same ids in each language.
    Text for macOS stands beside the text for other systems, and is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._tag = self._id = ""
        self._spans_left_out = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name = attributes.get("id") or ""
        if name.startswith(("par_id", "hd_id", "tit")):
            self._tag, self._id, self._spans_left_out = tag, name, 0
        elif tag == "span" and (self._spans_left_out or attributes.get("class") == "MAC"):
            self._spans_left_out += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._spans_left_out:
            self._spans_left_out -= 1
        elif tag == self._tag:
            self._tag = self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id and not self._spans_left_out:
            self.found[self._id] = self.found.get(self._id, "") + data


def _html(data: bytes) -> dict[str, str]:
    parser = _Paragraphs()
    parser.feed(data.decode("utf-8"))
    return parser.found


_READERS: dict[str, Callable[[bytes], dict[str, str]]] = {
    ".json": _json,
    ".properties": _properties,
    ".ftl": _fluent,
    ".pak": _pak,
    ".html": _html,
}
"""By the end of a file's name: what reads it into texts by key."""


def _program_texts(contents: Contents) -> Iterator[Message]:
    """Visual Studio Code and TypeScript: English texts are calls in the programs, by number and by key."""
    packs = sorted(
        path for path in contents if path.endswith(("main.i18n.json.js", "/de/diagnosticMessages.generated.json"))
    )
    for pack in packs:
        text = contents[pack].decode("utf-8")
        if pack.endswith(".js"):
            numbered = re.findall(rf"^\t(undefined|{_STRING}),?$", text, re.MULTILINE)
            german = {str(at): _literal(one) for at, one in enumerate(numbered) if one != "undefined"}
            call = _LOCALIZE
        else:
            german, call = {f'"{key[1:]}"': value for key, value in _json(contents[pack]).items()}, _DIAGNOSTIC
        english: dict[str, str] = {}
        for path in sorted(contents):
            if path.endswith(".js") and path != pack:
                for key, literal in call.findall(contents[path].decode("utf-8")):
                    english.setdefault(key, _literal(literal))
        yield from ((english[key], value) for key, value in german.items() if key in english)


def _literal(text: str) -> str:
    return _unescaped(text[1:-1])

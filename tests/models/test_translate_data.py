"""Near-duplicates stay in one split, splits never change, and the same packages give the same corpus."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("polib")
pytest.importorskip("fluent.syntax")

import polib

from models.recipes import translate_data as data
from models.recipes import translate_fetch
from models.recipes.translate_sources import Package, Source


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cannot open file %1", "cannot open FILE: %2!"),
        ("Delete 3 files?", "Delete 12 files"),
        ("Open the file", "Open a file..."),
        ("%1 page deleted", "%1 pages deleted"),
        ("Can't log in", "Cannot login"),
        ("The server doesn't answer", "The server does not answer"),
        ("Change the colour of a favourite", "Change color of favorite"),
        ("Organise e-mails", "Organize email"),
        ("Please select the start-up page", 'Select the "Startup" page (%1)'),
    ],
)
def test_near_duplicates_are_of_one_group(one: str, other: str) -> None:
    assert data.group_of(one) == data.group_of(other) != ""
    assert data.split_of(one) == data.split_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Open the file", "Open the folder"), ("Can open it", "Cannot open it"), ("Allow it", "Do not allow it")],
)
def test_texts_of_other_words_are_of_other_groups(one: str, other: str) -> None:
    assert data.group_of(one) != data.group_of(other)


@pytest.mark.parametrize(
    ("english", "split"),
    [
        ("Open the file", "train"),
        ("Search results", "test"),
        ("search result: %1", "test"),
        ("Save table", "validation"),
    ],
)
def test_a_text_stays_in_its_split(english: str, split: data.Split) -> None:
    """The shipped model was evaluated on this split, so its published scores hold only for this split."""
    assert data.split_of(english) == split


def test_splits_are_of_the_stated_sizes() -> None:
    counted = Counter(
        data.split_of(f"{chr(97 + a)}q {chr(97 + b)}w {chr(97 + c)}x")
        for a in range(26)
        for b in range(26)
        for c in range(15)
    )
    total = sum(counted.values())
    assert counted["validation"] / total == pytest.approx(0.02, abs=0.005)
    assert counted["test"] / total == pytest.approx(0.02, abs=0.005)


WORDS = (
    "open",
    "file",
    "files",
    "the",
    "colour",
    "color",
    "can't",
    "cannot",
    "%1",
    "3",
    "Delete",
    "Page",
    "pages",
    "log",
    "in",
    "login",
)
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
GERMAN = st.lists(
    st.sampled_from(("Datei", "Dateien", "öffnen", "löschen", "%1", "3", "Seite")), min_size=1, max_size=3
).map(" ".join)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.tuples(TEXTS, GERMAN), max_size=30), max_size=3))
def test_near_duplicates_stay_in_one_split(found: dict[str, list[tuple[str, str]]]) -> None:
    """This holds for any sources. English texts are kept apart by the split, German ones by leaving pairs out. Of each
    group, at most one pair is held out."""
    split = data.arrange(found)
    groups = {one: [data.group_of(pair.english) for pair in pairs] for one, pairs in split.items()}
    german = {one: [data.group_of(pair.german) for pair in pairs] for one, pairs in split.items()}
    for which in (groups, german):
        assert not set(which["train"]) & (set(which["validation"]) | set(which["test"]))
        assert not set(which["validation"]) & set(which["test"])
    for one in ("validation", "test"):
        assert max(Counter(groups[one]).values(), default=0) <= 1
    given = {(english, german) for pairs in found.values() for english, german in pairs}
    assert {(pair.english, pair.german) for pairs in split.values() for pair in pairs} <= given


def test_the_translation_that_most_sources_give_is_taken() -> None:
    """Other translations stay if two sources give them. If equally many sources give each, the first source's is
    taken."""
    found = {
        "a": [("Open the file", "Öffne die Datei"), ("Close the window", "Fenster zu")],
        "b": [("Open the file", "Datei öffnen"), ("Close the window", "Fenster schließen")],
        "c": [("Open the file", "Datei öffnen"), ("Open the file", "Datei aufmachen")],
        "d": [("Open the file", "Datei öffnen"), ("Open the file", "Datei aufmachen")],
    }
    pairs = {(pair.english, pair.german, pair.source) for pair in data.arrange(found)["train"]}
    assert pairs == {
        ("Open the file", "Datei öffnen", "b"),
        ("Open the file", "Datei aufmachen", "c"),
        ("Close the window", "Fenster zu", "a"),
    }


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two packages that are already fetched: a wheel with a gettext catalogue, and a wheel with JSON catalogues."""
    made = polib.POFile()
    for number, word in enumerate(("file", "page", "window", "folder", "printer", "image", "table", "server")):
        made.append(polib.POEntry(msgid=f"Open the {word}", msgstr=f"Öffne das {'xyzuvwrs'[number] * 4}"))
    wheels = {
        "one": {"one/locale/de/LC_MESSAGES/django.mo": made.to_binary()},
        "two": {"two/de.json": json.dumps({"a": "Bitte warten"}).encode(), "two/en.json": b'{"a": "Please wait"}'},
    }
    packages = []
    for name, files in wheels.items():
        folder = tmp_path / "corpus" / "packages" / "wheel" / f"{name}-1.0"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        packages.append(Package("wheel", name, "1.0", ("*.mo", "*.json")))
    return [Source(package.name, "MIT", (package,)) for package in packages]


def test_a_corpus_is_built_twice_with_the_same_bytes_and_loaded(tmp_path: Path, sources: list[Source]) -> None:
    corpus = tmp_path / "corpus"
    read = data.build(corpus, sources)
    files = {path.name: path.read_bytes() for path in corpus.iterdir() if path.is_file()}
    assert set(files) == {"train.tsv", "validation.tsv", "test.tsv", "sources.json"}
    assert data.build(corpus, sources) == read
    assert {path.name: path.read_bytes() for path in corpus.iterdir() if path.is_file()} == files

    pairs = [pair for split in data.SPLITS for pair in data.load(corpus, split)]
    assert data.Pair("Please wait", "Bitte warten", "two") in pairs
    assert [one.kept for one in read] == [8, 1]
    assert "| two | MIT | two 1.0 | 1 |" in data.table(read).splitlines()
    assert all(len(digest) == 64 for one in json.loads(files["sources.json"]) for digest in one["sha256"].values())


def test_without_apt_only_the_wheels_are_used_with_a_note(
    tmp_path: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "apt-get" else f"/bin/{program}")
    debian = Source("git", "MIT", (Package("debian", "git", "", ("*.mo",)),))
    assert [one.name for one in data.build(tmp_path / "corpus", [debian, *sources])] == ["one", "two"]
    assert "git: skipped, apt-get cannot be found" in capsys.readouterr().err


def test_catalogues_in_archives_of_a_package_are_read_by_their_own_paths(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("org/text_de.properties", "a=b")
        archive.writestr("org/Program.class", "x")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("java/a.jar", inner.getvalue())
        archive.writestr("java/de.json", "{}")
        archive.writestr("java/other.txt", "")
    found = translate_fetch.contents(tmp_path / "a.whl", ("java/*.jar", "de.json"))
    assert found == {"org/text_de.properties": b"a=b", "java/de.json": b"{}"}

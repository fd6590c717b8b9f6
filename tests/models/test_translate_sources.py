"""Each source has a licence that the decision allows, and a fixed version."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from models.recipes.translate_sources import ALLOWED, BY_FILE, PERMISSIVE, SOURCES, Source

DECISION = Path(__file__).parents[2] / "docs/decisions/0045-what-may-train-the-translator.md"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_has_a_licence_that_is_allowed_and_a_version(source: Source) -> None:
    """A Debian release keeps only one version of a package, so the version is recorded when the package is fetched."""
    assert source.licence in ALLOWED
    assert source.packages
    for package in source.packages:
        assert package.paths
        assert package.index == "debian" or re.fullmatch(r"\d[\w.]*", package.version)


def test_no_source_is_listed_twice() -> None:
    names = Counter(source.name for source in SOURCES)
    packages = Counter((package.index, package.name) for source in SOURCES for package in source.packages)
    assert not [name for counted in (names, packages) for name, times in counted.items() if times > 1]


def test_the_decision_names_each_licence_and_each_source() -> None:
    text = DECISION.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (\S+) \|", text, re.MULTILINE))
    assert {source.name: source.licence for source in SOURCES} == {
        name: licence for name, licence in rows.items() if licence in ALLOWED
    }
    assert all(licence in text for licence in ALLOWED)


def test_copyleft_licences_are_not_allowed() -> None:
    assert not PERMISSIVE & BY_FILE
    assert not [licence for licence in ALLOWED if "GPL" in licence or licence.startswith("CC")]

"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.sessions.lifecycle import diagram

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_diagram_of_a_session_is_drawn_from_its_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", ["architecture.md", "security.md"])
def test_every_test_that_a_document_names_exists(document: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / document).read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_the_readme_names_scripts_that_exist() -> None:
    for script in set(re.findall(r"\./(scripts/\w+)", (ROOT / "README.md").read_text())):
        assert (ROOT / script).exists(), script

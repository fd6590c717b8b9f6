"""The documents agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export import card
from service.repository.manifest import Manifest
from tests import imports, session_diagram

ROOT = Path(__file__).parent.parent
OF_DEVELOPERS = {"docs/architecture.md", "docs/performance.md"}
OF_USERS = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - OF_DEVELOPERS
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MANIFESTS = sorted((ROOT / "model_repository").glob("*/*/manifest.json"))


def test_the_diagram_of_a_session_is_drawn_from_its_table() -> None:
    assert f"```mermaid\n{session_diagram.diagram()}\n```" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_packages_are_drawn_from_the_code() -> None:
    expected = f"```mermaid\n{imports.diagram()}\n```"
    assert expected in (ROOT / "docs" / "architecture.md").read_text(), f"docs/architecture.md should have\n{expected}"


def test_the_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|ts|yml|md|proto))`", text))
    assert len(named) > 40
    tops = [ROOT, ROOT / "service", ROOT / "service" / "sessions", ROOT / "export"]
    assert {name for name in named if not any((top / name).exists() for top in tops)} == set()


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


@pytest.mark.parametrize("document", ["README.md", *sorted(OF_USERS)])
def test_each_page_gives_its_commands_for_the_wheels(document: str) -> None:
    """One table gives them. On every page but the README, the table stands above the first command."""
    text = (ROOT / document).read_text()
    head, _, rest = text.partition("| in a checkout | from the wheels |\n")
    rows = rest.partition("\n\n")[0]
    for named, new in (
        (r"-m service|scripts/serve\b", "carousel-server"),
        (r"-m export", "carousel-export"),
        (r"-m models\.", "carousel_server.models."),
        (r"(?:from|import) export\.", "carousel_server.export."),
        (r"scripts/setup (?!cli)\w", "carousel-serving["),
    ):
        if re.search(named, text):
            assert new in rows, named
            assert document == "README.md" or not re.search(named, head), named


def test_an_example_that_imports_the_exporter_has_both_names() -> None:
    for document in DOCUMENTS:
        for example in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
            for name in re.findall(r"^(?:from|import) ((?:export|models|service)\b\S*)", example, re.MULTILINE):
                assert f"carousel_server.{name} " in example, f"{document.name}: {name}"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.parent.parent.name)
def test_a_shipped_card_has_the_reference_that_the_exporter_writes(manifest: Path) -> None:
    """A new word in `export/card.py` must also reach the cards that are shipped."""
    reference = card.reference(Manifest.model_validate_json(manifest.read_bytes()))
    assert reference.strip() in manifest.with_name("README.md").read_text()

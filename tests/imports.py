"""Reads from the code which package imports which, and draws the diagram of docs/architecture.md."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "service.server",
    "service.wire",
    "service.listeners",
    "service.api",
    "service.hosting",
    "service.sessions",
    "service.engine",
    "service.repository",
    "service.telemetry",
    "carousel.cli",
    "carousel.v1",
    "carousel",
    "export",
    "models",
)
"""A module belongs to the first package whose name begins its own. Other modules are not drawn: command lines,
settings, and small modules such as `service.errors`, which import no package and which any package may import."""
UNDRAWN = frozenset(("carousel._extras", "carousel._version"))
"""Modules of the client that import nothing of it: installation hints for missing extras, and the version."""


def package_of(module: str) -> str | None:
    """Returns the package that a module belongs to, or None for a module that is not drawn."""
    if any(module == one or module.startswith(f"{one}.") for one in UNDRAWN):
        return None
    return next((one for one in PACKAGES if module == one or module.startswith(f"{one}.")), None)


def imported_modules(path: Path) -> set[str]:
    """Returns the full names of the modules that a file imports, also for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def edges() -> dict[str, set[str]]:
    """Returns the packages that each package imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for top in sorted({package.partition(".")[0] for package in PACKAGES}):
        for path in (ROOT / top).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if module.endswith("__main__"):
                continue
            importer = package_of(module)
            for imported in imported_modules(path):
                target = package_of(imported)
                if importer and target and target != importer:
                    found[importer].add(target)
    return found


def diagram() -> str:
    """Returns the packages as a Mermaid flowchart. An edge that a longer path implies is left out."""
    direct = edges()

    def reached(package: str, seen: set[str]) -> set[str]:
        for target in direct[package] - seen:
            seen.add(target)
            reached(target, seen)
        return seen

    lines = ["flowchart TD"]
    for package in PACKAGES:
        for target in sorted(direct[package], key=PACKAGES.index):
            if not any(target in reached(other, set()) for other in direct[package] - {target}):
                lines.append(f"    {package} --> {target}")
    return "\n".join(lines)

"""Makes the pyproject.toml of each distribution from the checkout's pyproject.toml."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

BACKEND_FILE = "build_backend.py"
"""This file is in the same folder as the distribution's pyproject.toml."""
_BUILD = 'build-backend = "build_backend"\nbackend-path = ["."]'
_BACKEND = "flit-core"


class MetadataError(Exception):
    """No distribution can be made from pyproject.toml; the message is the reason."""


def client(checkout: Mapping[str, Any], version: str) -> str:
    """Returns the client's pyproject.toml. checkout: the parsed one of the checkout. Raises MetadataError."""
    project, about = checkout["project"], checkout["tool"]["carousel"]["client"]
    return _toml(
        checkout,
        about,
        module=about["folders"][0],
        version=version,
        description=about["description"],
        dependencies=list(about["dependencies"]),
        extras={name: list(project["optional-dependencies"][name]) for name in about["extras"]},
        scripts={name: project["scripts"][name] for name in about["scripts"]},
    )


def server(checkout: Mapping[str, Any], version: str) -> str:
    """Returns the server's pyproject.toml. checkout: the parsed one of the checkout. Raises MetadataError."""
    project = checkout["project"]
    about, clients = checkout["tool"]["carousel"]["server"], checkout["tool"]["carousel"]["client"]
    extras = {name: list(project["optional-dependencies"][name]) for name in about["extras"]}
    extras |= {name: [f"{clients['name']}[{name}]=={version}"] for name in clients["extras"]}
    return _toml(
        checkout,
        about,
        module=about["package"],
        version=version,
        description=project["description"],
        dependencies=[f"{clients['name']}=={version}", *project["dependencies"]],
        extras=dict(sorted(extras.items())),
        scripts={name: f"{about['package']}.{project['scripts'][name]}" for name in about["scripts"]},
    )


def backend(checkout: Mapping[str, Any]) -> str:
    """Returns the requirement that builds both distributions. Raises MetadataError when the extra `dev` lacks it."""
    for requirement in checkout["project"]["optional-dependencies"]["dev"]:
        if re.match(r"[\w.-]*", requirement).group() == _BACKEND:  # type: ignore[union-attr]  # always matches
            return str(requirement)
    raise MetadataError(f"pyproject.toml: the extra `dev` must have {_BACKEND}, which builds the distributions")


def _toml(
    checkout: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    module: str,
    version: str,
    description: str,
    dependencies: list[str],
    extras: Mapping[str, list[str]],
    scripts: Mapping[str, str],
) -> str:
    project = checkout["project"]
    same = ("requires-python", "license", "license-files", "authors", "keywords", "classifiers")
    lines = ["[build-system]", f"requires = [{json.dumps(backend(checkout))}]", _BUILD, "", "[project]"]
    lines += [f"name = {json.dumps(about['name'])}", f"version = {json.dumps(version)}"]
    lines += [f"description = {json.dumps(description)}", 'readme = "README.md"']
    lines += [f"{key} = {_value(about.get(key, project[key]))}" for key in same]
    lines += [f"dependencies = {_value(dependencies)}"]
    lines += ["", "[project.optional-dependencies]", *(f"{name} = {_value(needs)}" for name, needs in extras.items())]
    if "urls" in project:
        lines += [
            "",
            "[project.urls]",
            *(f"{json.dumps(name)} = {_value(url)}" for name, url in project["urls"].items()),
        ]
    lines += ["", "[project.scripts]", *(f"{name} = {_value(place)}" for name, place in scripts.items())]
    lines += ["", "[tool.flit.module]", f"name = {json.dumps(module)}"]
    lines += ["", "[tool.flit.sdist]", f"include = {_value([BACKEND_FILE])}"]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """Returns a string, a list or a table of them as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return json.dumps(value)

"""`python -m tests.deploy.rendering` renders the chart. It runs in a child process, because Helm's library is written
in Go.

Reads {"name": ..., "values": ...} and writes the templates' texts by their paths, both as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "carousel"


def texts(values: dict[str, Any], name: str = "carousel") -> dict[str, str]:
    """Returns the text of each template, by its file name. Raises ValueError with Helm's reason."""
    return _texts(json.dumps({"name": name, "values": values}))


@cache
def _texts(given: str) -> dict[str, str]:
    command = [sys.executable, "-m", "tests.deploy.rendering"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return {path.rpartition("/")[2]: text for path, text in json.loads(done.stdout).items()}


def manifests(values: dict[str, Any], name: str = "carousel") -> list[dict[str, Any]]:
    """Returns the rendered Kubernetes manifests."""
    rendered = [text for path, text in sorted(texts(values, name).items()) if path.endswith(".yaml")]
    return [one for text in rendered for one in yaml.safe_load_all(text) if one is not None]


def main() -> None:
    """Renders the chart for the request on standard input."""
    import helm_python  # noqa: PLC0415  # only the child process may load it

    given = json.load(sys.stdin)
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(given["values"])
        json.dump(chart.render(given["values"], name=given["name"], namespace="models"), sys.stdout)
    problems = [one for one in helm_python.lint(str(CHART))["messages"] if one["severity"] > 1]
    if problems:
        sys.exit(str(problems))


if __name__ == "__main__":
    main()

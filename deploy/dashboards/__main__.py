"""`python -m deploy.dashboards FOLDER` writes the dashboards into the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards import models, service, sessions
from deploy.dashboards.panels import build

ALL = (service.DASHBOARD, models.DASHBOARD, sessions.DASHBOARD)


def texts() -> dict[str, str]:
    """Returns the JSON of each dashboard by its file name."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{one.title.lower()}.json": encoder.encode(build(one)) + "\n" for one in ALL}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (folder / name).write_text(text)

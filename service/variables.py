"""Environment variables that look like settings and are not: most are misspelled settings. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from service.settings import Settings

_OF_THE_CLIENT = {"TARGET", "TOKEN"}
"""Variables that the command `carousel` reads. They are not settings of the server."""
_OF_KUBERNETES = re.compile(r"CAROUSEL_(SERVICE_|PORT_\d)")
"""Variables that Kubernetes sets for a service named `carousel`."""


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Returns the environment variables that begin like settings but are not settings, each with the setting that is
    spelled most like it, or None."""
    prefix = Settings.model_config["env_prefix"]
    names = {name.upper() for name in Settings.model_fields}
    unknown = []
    for variable in sorted(environ):
        name = variable.upper().removeprefix(prefix)
        if name != variable.upper() and name not in names | _OF_THE_CLIENT and not _OF_KUBERNETES.match(variable):
            nearest = get_close_matches(name, names, 1)
            unknown.append((variable, f"{prefix}{nearest[0]}" if nearest else None))
    return unknown

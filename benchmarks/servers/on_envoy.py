"""Runs one of these servers inside Envoy, with the service's own Envoy configuration, and prints its port.

    python -m benchmarks.servers.on_envoy NAME ARGUMENTS

This process becomes Envoy, and SIGTERM ends it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.servers.envoy_application import VARIABLE
from examples.ports import free_port
from service.settings import Settings
from service.wire.envoy import configuration, library


def main() -> None:
    """Replaces this process with Envoy, and so does not return."""
    port = free_port()
    made = configuration.configuration(
        Settings(),
        Path(),
        module=library.module_path(),
        application="benchmarks.servers.envoy_application:app",
        where=[("127.0.0.1", port)],
    )
    del made["admin"]
    print(port, flush=True)
    path = library.binary_path()
    flags = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    environment = {**library.environment(), VARIABLE: json.dumps(sys.argv[1:])}
    os.execve(path, (path, "--config-yaml", json.dumps(made), *flags), environment)  # noqa: S606  # no shell is needed


if __name__ == "__main__":
    main()

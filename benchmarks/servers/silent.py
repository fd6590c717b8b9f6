"""The service without any metric or event log. Prints the port.

python -m benchmarks.servers.silent MODELS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from service import process, server
from service.settings import Settings
from service.telemetry import logging
from service.wire.grpcio import GrpcioWire


class Deaf:
    """An observer that ignores every report."""

    is_tracing = False

    def __init__(self, *facts: Any, **named: Any) -> None:
        """Takes any arguments, as the real observers do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ignore


def _ignore(*facts: object, **named: object) -> None:
    """Ignores a report."""


async def main() -> None:
    """Serves until SIGTERM."""
    logging.configure("json", "error")
    for name in ("EngineTelemetry", "SessionTelemetry", "StoreTelemetry"):
        setattr(server, name, Deaf)
    settings = Settings(models=Path(sys.argv[1]), port=0, metrics_port=0, store="memory")
    one = server.Server(settings, GrpcioWire(settings))
    print((await one.start()).port, flush=True)
    await one.wait()
    await one.stop()


if __name__ == "__main__":
    process.run(main())

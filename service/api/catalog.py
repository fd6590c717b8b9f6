"""The models that calls may name: bundles with the engines that run them."""

from __future__ import annotations

from collections.abc import Mapping

from service.engine.engine import Engine
from service.repository.repository import Repository
from service.sessions.session import Served


class Catalog:
    """Finds what serves a model. Event loop only."""

    def __init__(self, repository: Repository, engines: Mapping[tuple[str, int], Engine]) -> None:
        self.repository = repository
        self._served = {key: Served(repository.bundles[key], engine) for key, engine in engines.items()}

    def find(self, model: str, version: int) -> Served:
        """The newest version for 0. Raises ModelNotFoundError and ModelUnavailableError."""
        bundle = self.repository.find(model, version)
        return self._served[bundle.model, bundle.version]

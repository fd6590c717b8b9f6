"""The models that calls may name: bundles with the engines that run them."""

from __future__ import annotations

from collections.abc import Mapping

from service.engine.engine import Engine
from service.errors import ModelNotFoundError
from service.repository.manifest import BASE_VARIANT
from service.repository.repository import Repository
from service.sessions.session import Served


class Catalog:
    """Finds what serves a model. engines: by model, version and variant. Event loop only."""

    def __init__(self, repository: Repository, engines: Mapping[tuple[str, int, str], Engine]) -> None:
        self.repository = repository
        self._served = {key: Served(repository.bundles[key[:2]], engine, key[2]) for key, engine in engines.items()}

    def find(self, model: str, version: int, variant: str) -> Served:
        """The newest version for 0, the base for no variant. Raises ModelNotFoundError and ModelUnavailableError."""
        bundle = self.repository.find(model, version)
        served = self._served.get((bundle.model, bundle.version, variant or BASE_VARIANT))
        if served is None:
            raise ModelNotFoundError(
                f"variant = {variant!r} of model {bundle.model!r} version {bundle.version} does not exist: there is"
                f" {', '.join(bundle.variants)}",
                field="variant",
                model=bundle.model,
                version=bundle.version,
            )
        return served

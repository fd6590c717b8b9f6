"""Finds the served version that can continue with an image."""

from __future__ import annotations

from collections.abc import Callable

from service.errors import CarouselError, SnapshotModelError
from service.sessions.image import Image
from service.sessions.served import Served

Find = Callable[[str, int, str], Served]
"""Finds a served model by name, version and variant. Raises ModelNotFoundError and ModelUnavailableError."""


def served_image(find: Find, image: Image, version: int | None, field: str) -> Served:
    """Returns the served version for an image. version: None takes the image's own. field: the request field that
    errors name in that case. Raises SnapshotModelError."""
    what = "session" if field == "session_id" else "snapshot"
    try:
        served = find(image.model, wanted := version or image.version, image.variant)
    except CarouselError as error:
        raise SnapshotModelError(
            f"{what} cannot continue with {image.model} version {wanted} ({image.variant}), which this server does not"
            f" serve: {error.message}",
            field=field if version is None else "version",
            model=image.model,
            version=wanted,
        ) from error
    if version is None and served.bundle.manifest_digest != image.manifest_digest:
        raise SnapshotModelError(
            f"{what} was made with another bundle of {image.model} version {image.version}: its manifest has the digest"
            f" {image.manifest_digest[:16]}..., but the manifest on this server has"
            f" {served.bundle.manifest_digest[:16]}...",
            field=field,
            model=image.model,
            version=image.version,
        )
    return served

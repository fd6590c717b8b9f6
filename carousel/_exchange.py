"""Defines an exchange with a server, one request and its answer (see `_protocol`), and the errors that interrupt it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb

T = TypeVar("T")
Exchange: TypeAlias = Generator[pb.StreamRequest | None, pb.StreamResponse, T]


class LostError(Exception):
    """The stream cannot be used any more, but its sessions may be resumed on another.

    error: raised if they cannot.
    """

    def __init__(self, error: CarouselError) -> None:
        super().__init__(str(error))
        self.error = error


class RepeatError(Exception):
    """A request must be sent again later on the same stream.

    error: raised if there is no time left for that.
    """

    def __init__(self, request: pb.StreamRequest, error: CarouselError) -> None:
        super().__init__(str(error))
        self.request = request
        self.error = error

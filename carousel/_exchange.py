"""Defines an exchange with a server: the steps of one request and its answer. See `_protocol`."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from carousel.v1 import inference_pb2 as pb

T = TypeVar("T")
Exchange: TypeAlias = Generator[pb.StreamRequest | None, pb.StreamResponse, T]

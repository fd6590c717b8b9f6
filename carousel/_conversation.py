"""What a conversation with a server is: see `_protocol`."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from carousel.v1 import inference_pb2 as pb

T = TypeVar("T")
Conversation: TypeAlias = Generator[pb.StreamRequest | None, pb.StreamResponse, T]

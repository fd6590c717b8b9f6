"""Decides whether a stream ended because of one of its requests, and which one. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import grpc

from carousel._backoff import is_refusal
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb

_TOO_LARGE = re.compile(r"SERVER: Received message larger than max \((\d+) vs\. (\d+)\)")
_LARGEST_MESSAGE_BYTES = 2**31 - 1  # protobuf's own limit


class Refusals:
    """The refusals of one session or batch. max_request_bytes: the largest request that the server may accept."""

    def __init__(self) -> None:
        self.max_request_bytes = _LARGEST_MESSAGE_BYTES
        self._last: grpc.StatusCode | None = None

    def at_fault(self, error: CarouselError, pending: Sequence[pb.StreamRequest]) -> pb.StreamRequest | None:
        """Returns the pending request at fault: the one that is too large, or the oldest if the same refusal repeats.

        error: the error that ended the stream.
        """
        found = self._oversized(error, pending)
        if found is None and is_refusal(error) and error.code is self._last and pending:
            found = pending[0]
        self._last = error.code if is_refusal(error) else None
        return found

    def reset(self) -> None:
        """Records that a request made progress."""
        self._last = None

    def _oversized(self, error: CarouselError, pending: Sequence[pb.StreamRequest]) -> pb.StreamRequest | None:
        """Returns the request that the server's gRPC refused for its size. Records the server's limit."""
        found = _TOO_LARGE.search(error.message)
        if found is None:
            return None
        size, limit = map(int, found.groups())
        self.max_request_bytes = min(self.max_request_bytes, limit)
        return next((request for request in pending if request.ByteSize() == size), None)

"""Makes request messages about models and existing sessions."""

from __future__ import annotations

from collections.abc import Sequence

from carousel._arguments import text
from carousel._tokens import uint
from carousel.v1 import models_pb2, sessions_pb2
from carousel.values import StateTensor


def model_request(model: str, version: int) -> models_pb2.ModelsGetRequest:
    """Makes the request for the description of one version of a model."""
    return models_pb2.ModelsGetRequest(model=text(model, "model"), version=uint(version, 32, "version"))


def load_request(model: str, version: int) -> models_pb2.ModelsLoadRequest:
    """Makes the request to load new versions of one model, or of all models if the name is empty."""
    return models_pb2.ModelsLoadRequest(model=text(model, "model"), version=uint(version, 32, "version"))


def unload_request(model: str, version: int) -> models_pb2.ModelsUnloadRequest:
    """Makes the request to stop serving one version of a model."""
    return models_pb2.ModelsUnloadRequest(model=text(model, "model"), version=uint(version, 32, "version"))


def sessions_request(model: str | None, page_size: int) -> sessions_pb2.SessionsListRequest:
    """Makes the request for the first page of sessions."""
    return sessions_pb2.SessionsListRequest(
        model=text(model or "", "model"), page_size=uint(page_size, 32, "page_size")
    )


def next_page(
    request: sessions_pb2.SessionsListRequest, response: sessions_pb2.SessionsListResponse
) -> sessions_pb2.SessionsListRequest | None:
    """Makes the request for the next page. None after the last page."""
    if not response.next_page_token:
        return None
    return sessions_pb2.SessionsListRequest(
        model=request.model, page_size=request.page_size, page_token=response.next_page_token
    )


def restore_request(snapshot: bytes, session_id: str, version: int | None) -> sessions_pb2.SessionsRestoreRequest:
    """Makes the request to make a session from a snapshot."""
    if not isinstance(snapshot, bytes | bytearray | memoryview):
        raise TypeError(f"snapshot must be bytes, not {snapshot!r:.60}")
    wanted = None if version is None else uint(version, 32, "version")
    return sessions_pb2.SessionsRestoreRequest(
        snapshot=bytes(snapshot), session_id=text(session_id, "session_id"), version=wanted
    )


def state_request(session_id: str, tensors: Sequence[StateTensor]) -> sessions_pb2.SessionsSetStateRequest:
    """Makes the request to replace state tensors."""
    if wrong := [one for one in tensors if not isinstance(one, StateTensor)]:
        raise TypeError(f"tensors must be StateTensors, not {wrong[0]!r:.60}")
    messages = [sessions_pb2.StateTensor(name=t.name, dtype=t.dtype, shape=t.shape, data=t.data) for t in tensors]
    return sessions_pb2.SessionsSetStateRequest(session_id=text(session_id, "session_id"), tensors=messages)

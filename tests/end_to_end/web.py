"""Sends requests as browsers and `curl` do, with HTTP/1.1."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import NamedTuple

from carousel.v1 import models_pb2

JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/proto"}
WEB = {"content-type": "application/grpc-web+proto"}
BAD_JSON = [
    ("Models/Get", b'{"model": "nope"}', "not_found", 404, "model = 'nope'"),
    ("Models/Get", b'{"modle": "tiny-lm"}', "invalid_argument", 400, '"modle"'),
    ("Models/Get", b"{", "invalid_argument", 400, "not JSON of carousel.v1.ModelsGetRequest"),
]
"""Calls that are refused in JSON: the method, the request, Connect's code, the HTTP status, and words of the
message."""


class Answer(NamedTuple):
    """The answer to one request."""

    status: int
    body: bytes
    headers: Message


def ask(target: str, path: str, body: bytes | None, headers: Mapping[str, str], method: str | None = None) -> Answer:
    """Sends a request. Returns the answer, also if it is an error. method: by default POST with a body, else GET."""
    request = urllib.request.Request(f"http://{target}{path}", body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return Answer(answer.status, answer.read(), answer.headers)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), error.headers)


def check_list_in_grpc_web(answer: Answer) -> None:
    """Checks that an answer to `Models/List` in gRPC-Web is complete: a message that names `tiny-lm`, and the status
    OK."""
    status, body, _ = answer
    length = int.from_bytes(body[1:5], "big")
    listed = models_pb2.ModelsListResponse.FromString(body[5 : 5 + length])
    assert (status, body[0], body[5 + length]) == (200, 0, 0x80)
    assert "tiny-lm" in [model.model for model in listed.models]
    assert b"grpc-status:0" in body[10 + length :]


def check_list_in_proto(answer: Answer) -> None:
    """Checks that an answer to `Models/List` in protocol buffers (Connect) names `tiny-lm`."""
    assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
    assert "tiny-lm" in [model.model for model in models_pb2.ModelsListResponse.FromString(answer.body).models]

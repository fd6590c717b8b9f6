"""Invalid JSON of a message is refused in one sentence that names the field, its value and what was expected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from service.wire.json_messages import JsonError, parse

INTEGER = "an integer from 0 to 18446744073709551615"
TOKEN = "an integer from 0 to 4294967295"  # of a vocabulary
SECONDS = 'seconds as a string, such as "1.5s"'
DURABILITY = "one of DURABILITY_UNSPECIFIED, DURABILITY_NONE, DURABILITY_CHECKPOINT, DURABILITY_STRICT"
OPEN = "an object, {...}, of carousel.v1.Open"


def refusal(data: bytes) -> str:
    with pytest.raises(JsonError) as refused:
        parse(data, pb.StepRequest)
    return str(refused.value)


REFUSED: list[tuple[str, list[Any], str]] = [
    ("open", [[], "", 5, True, [1], "ab", [{}]], OPEN),
    ("open.onDisconnect", [[]], "an object, {...}, of carousel.v1.DisconnectPolicy"),
    ("open.constants", [[]], "an object, {...}"),
    ("feed.position", [True, 1.5, "abc", "", -1, 1e30, [], {}, "x" * 10_000], INTEGER),
    ("feed.tokens", ["ab", {}, 5, ""], "a list, [...]"),
    ("close", [1, "yes", [], "true"], "true or false"),
    ("sessionId", [5, [], True], "a string"),
    ("sessionId", ["\ud800", "a\udfff"], "a string without a lone surrogate"),
    ("feed.position", ["\ud800"], INTEGER),
    ("open.durability", ["X", True, 1.5, [], "durability_none"], DURABILITY),
    ("open.onDisconnect.duration", ["1", 5, [], "", "xs", {}], SECONDS),
    ("feed.features.data", ["###", 5, [], "A", "AA=A"], "bytes in base64"),
]


@pytest.mark.parametrize(
    ("path", "value", "expected"), [(path, value, expected) for path, values, expected in REFUSED for value in values]
)
def test_a_value_is_refused_with_its_field(path: str, value: Any, expected: str) -> None:
    body: Any = value
    for name in reversed(path.split(".")):
        body = {name: body}
    found = refusal(json.dumps(body).encode())
    field = path.replace("sessionId", "session_id").replace("onDisconnect", "on_disconnect")
    shown = json.dumps(value)
    shown = shown if len(shown) < 62 else f"{shown[:60]}..."
    assert found == f"{field} = {shown} must be {expected}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            '{"open": {"constants": {"sr": []}}}',
            'open.constants["sr"] = [] must be an object, {...}, of carousel.v1.Tensor',
        ),
        ('{"feed": {"tokens": ["a", null]}}', "feed.tokens[1] = null must be a string"),
        ('{"feed": {"tokenIds": [1, 2, "x", 4]}}', f'feed.token_ids[2] = "x" must be {TOKEN}'),
        ('{"feed": {"tokenIds": [1, [], "x"]}}', f"feed.token_ids[1] = [] must be {TOKEN}"),
        ('{"session_id": "a", "sessionId": "b"}', "session_id is given twice"),
        (
            '{"open": {"source": {"text": "a", "tokens": {}}}}',
            "open.source.text and open.source.tokens are both set: set one",
        ),
        (
            '{"feed": {"nope": 1}}',
            '"feed.nope" is not a field of carousel.v1.Feed: expected one of token_ids, tokens, position, outputs,'
            " mark, features",
        ),
        (
            '{"open": {"resume": {"id": 1}}}',
            '"open.resume.id" is not a field of carousel.v1.Resume, which has no fields',
        ),
    ],
)
def test_an_invalid_field_value_is_named(data: str, words: str) -> None:
    assert refusal(data.encode()) == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "it is invalid at line 1, column 2, at its end"),
        (b'{"open":\n  oops}', 'it is invalid at line 2, column 3, before "oops}"'),
        (b"[]", "it is []: expected an object, {...}"),
        (b"\xff", "byte 1 is not UTF-8"),
        (b'{"close": true, "close": true}', 'the key "close" occurs twice in one object'),
        (b'{"feed": {"position": NaN}}', 'NaN must be in quotes, "NaN"'),
        (b'{"feed": {"position": %s}}' % (b"9" * 5000), "an integer has too many digits"),
        (b'{"a":' * 20_000, "its lists or objects are nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(data: bytes, words: str) -> None:
    assert refusal(data) == f"the request is not JSON of carousel.v1.StepRequest: {words}"


def test_every_valid_json_form_is_accepted() -> None:
    body: dict[str, Any] = {
        "session_id": "a",
        "open": {"model": "m", "durability": 3, "onDisconnect": {"action": "2", "duration": "1.5s"}, "source": None},
        "feed": {"tokenIds": ["3", 4.0], "position": "2", "features": {"data": "AAA_-w"}},
    }
    message = parse(json.dumps(body).encode(), pb.StepRequest)
    assert (message.open.durability, message.open.on_disconnect.duration.nanos) == (3, 500_000_000)
    assert (list(message.feed.token_ids), message.feed.position, len(message.feed.features.data)) == ([3, 4], 2, 4)
    assert not message.open.HasField("source")
    assert parse(b"", pb.StepRequest) == pb.StepRequest()

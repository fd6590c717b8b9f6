"""A request over a limit is refused, with the name of the setting or of the model's property that is the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from carousel.v1 import inference_pb2 as pb
from service.engine.limits import EngineLimits
from tests.end_to_end.wire import wire
from tests.services import local_service

LIMITS = {
    "max-sessions": 2,
    "max-feed-tokens": 6,
    "max-generate-tokens": 5,
    "max-forks": 2,
    "num-forks": 2,
    "max-hold-s": 9,
    "max-keep-s": 10,
    "max-durability": "checkpoint",
    "store": "memory",
}
SIX = pb.Sequence(ids=pb.TokenIds(ids=[6]))


def held(action: pb.DisconnectAction.ValueType) -> pb.Open:
    """Returns an opening with a duration over the limit."""
    return pb.Open(model="tiny-lm", on_disconnect=pb.DisconnectPolicy(action=action, duration=Duration(seconds=11)))


def beams(count: int) -> pb.Generate:
    """Returns a beam search with `count` beams."""
    return pb.Generate(decoding=pb.Decoding(max_tokens=1, beam_search=pb.BeamSearch(beam_size=count)))


REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "feed": ({"feed": pb.Feed(token_ids=[5] * 7)}, "max_feed_tokens", {"max_feed_tokens": "6", "limit": "6"}),
    "target": (
        {"score": pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[5] * 7))])},
        "max_feed_tokens",
        {"max_feed_tokens": "6", "limit": "6"},
    ),
    "targets": ({"score": pb.Score(targets=[SIX] * 3)}, "max_forks", {"max_forks": "2", "limit": "2"}),
    "beams": ({"generate": beams(3)}, "max_forks", {}),
    "tokens": ({"generate": pb.Generate(decoding=pb.Decoding(max_tokens=6))}, "max_generate_tokens", {}),
    "handles": (
        {"step_batch": pb.StepBatch(handles=range(1, 8), token_ids=[5] * 7)},
        "max_feed_tokens",
        {"max_feed_tokens": "6", "limit": "6"},
    ),
    "hold": ({"open": held(pb.DISCONNECT_ACTION_HOLD)}, "max_hold_s", {}),
    "keep": ({"open": held(pb.DISCONNECT_ACTION_KEEP)}, "max_keep_s", {}),
    "strict": ({"open": pb.Open(model="tiny-lm", durability=pb.DURABILITY_STRICT)}, "max_durability", {}),
    "sessions": ({"open": pb.Open(model="tiny-lm")}, "max_sessions", {"max_sessions": "2"}),
    "answer": (
        {"feed": pb.Feed(token_ids=[5] * 6, outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_LOGITS, every_position=True))},
        "max_message_bytes",
        {"limit": "512"},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_names_the_setting_that_refuses(tiny_repository: Path, case: str) -> None:
    request, setting, metadata = REFUSED[case]
    with local_service(tiny_repository, {**LIMITS, "max-message-bytes": 1024}) as service:
        async with wire(service.target) as stream:
            for name in "ab":
                assert (await stream.ask(name, open=pb.Open(model="tiny-lm"))).HasField("opened")
            name = {"open": "c", "step_batch": ""}.get(next(iter(request)), "a")
            error = (await stream.ask(name, **request)).error
    assert setting in error.message
    assert len(error.metadata["x-request-id"]) == 32
    assert {name: found for name, found in error.metadata.items() if name != "x-request-id"} == metadata


def test_limits_of_an_engine_have_their_settings_names() -> None:
    limits = EngineLimits(num_slots=2, num_forks=3, max_waiting=4)
    for error, setting, value in (
        (limits.no_slot(), "max_slots", 2),
        (limits.no_fork(3), "num_forks", 3),
        (limits.queue_full(4), "max_waiting", 4),
    ):
        assert error.facts == {setting: value}
        assert setting in error.message

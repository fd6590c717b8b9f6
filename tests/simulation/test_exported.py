"""Simulates models from ONNX files, a transducer of three files and a translator of two, and compares them with plain
loops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from service.engine import emitted as engine_emitted
from service.engine import results, runner
from service.engine.emitted import Emitted
from simulation import exported, messages
from simulation.bare import Bare, beginning
from simulation.bundles import LISTENER, MODELS, TRANSLATOR
from simulation.knobs import Knobs
from simulation.run import run_script, script_of
from simulation.script import Action
from simulation.states import after
from simulation.world import World
from tests.simulation.scenes import RESUME, STRICT, found_by_seeds, keep, play

FRAMES = [3, 1, 4, 1, 5, 2, 6, 5]
WRONG = "that the plain model does not give"


def test_scripts_open_sessions_of_every_model() -> None:
    opened = Counter(action.args["model"] for seed in range(100) for action in script_of(seed) if action.op == "open")
    assert set(opened) == set(MODELS)
    assert min(opened.values()) > 100


def test_some_frames_emit_nothing_some_a_token_and_some_as_many_as_they_may() -> None:
    state = beginning(LISTENER, ())
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(200):
        reported = state.emitted(step % 8)
        counts[len(reported.token_ids), reported.num_limited] += 1
        state = state.step(step % 8)
    assert set(counts) == {(0, 0), (1, 0), (2, 1)}


def test_tokens_are_returned_once_and_replayed_on_every_server() -> None:
    """Another server takes over the session. The client repeats a feed there, and the session still has its tokens so
    far."""

    async def act(world: World) -> None:
        first, second = world.connect(0), world.connect(1)
        await first.ask("s", open=messages.opening(LISTENER, [], durability=STRICT, on_disconnect=keep()))
        feed = messages.feed(LISTENER, FRAMES, pb.OUTPUT_KIND_UNSPECIFIED, position=0)
        reported = await first.ask("s", feed=feed)
        expected = after(beginning(LISTENER, ()), FRAMES)
        assert isinstance(expected, Bare)
        tokens = [token.id for output in reported.fed.outputs for token in output.tokens]
        assert len(tokens) == expected.emitted_so_far[1] > 1
        await second.ask("s", open=RESUME)
        again = await second.ask("s", feed=feed)
        assert again.fed.replayed
        assert again.fed.outputs == reported.fed.outputs
        found = await world.call("Sessions.GetState", sessions_pb2.SessionsGetStateRequest(session_id="s"), slot=1)
        assert ([token.id for token in found.emitted], found.num_emitted) == expected.emitted_so_far
        assert tuple(tensor.data for tensor in found.tensors) == expected.tensors

    play(act, models=(LISTENER, TRANSLATOR, "lazy"))


def test_a_missing_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph loses the last token of each frame."""

    def one_less(values: Any) -> Emitted:
        reported = engine_emitted.emitted(values)
        return reported._replace(token_ids=reported.token_ids[:-1], log_probabilities=reported.log_probabilities[:-1])

    monkeypatch.setattr(results, "emitted", one_less)
    assert found_by_seeds(WRONG)


@pytest.mark.parametrize("model", [LISTENER, TRANSLATOR])
def test_a_wrong_bit_of_a_state_is_found(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the transducer's encoder, or of the translator's decoder, is wrong in some runs."""
    right = exported.FailingGraph.run
    name = {LISTENER: "encoder.next_heard", TRANSLATOR: "next_hidden"}[model]

    def wrong(self: exported.FailingGraph, outputs: Any, inputs: Any) -> list[Any]:
        found = right(self, outputs, inputs)
        if name in outputs:
            state = found[list(outputs).index(name)]
            state += state % 5 == 1
        return found

    monkeypatch.setattr(exported.FailingGraph, "run", wrong)
    assert found_by_seeds(WRONG)


def test_sources_of_several_lengths_are_stepped_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds also in one step batch. In a single run the decoder would read all sources with the length of the
    first, which is a violation."""
    fixed = {"slot": 0, "model": TRANSLATOR, "durability": STRICT, "action": pb.DISCONNECT_ACTION_KEEP}
    fixed |= {"duration_s": 5.0, "is_made": False, "outputs": False, "unattended": False, "rude": True}
    opened = [
        Action(0, "open", 0.0, {"k": k, "source": source, **fixed}) for k, source in enumerate([[3], [1, 2, 3, 4, 5]])
    ]
    asked = {"tokens": [4], "with_position": True, "mark": False, "kind": pb.OUTPUT_KIND_NEXT_TOKEN, "size": 2}
    actions = [*opened, Action(0, "step_batch", 0.5, {"k": 0, "slot": 0, **asked})]
    knobs = Knobs(models=MODELS)
    journal = run_script(0, actions, knobs)
    assert not journal.violations
    assert any("batch_stepped" in line for line in journal.trace)
    monkeypatch.setattr(runner, "groups_of", lambda states, count: [])
    assert run_script(0, actions, knobs).violations

"""The trace of a step: gates and states satisfy the cell's equations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from carousel import Client, InvalidArgumentError, Step
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.conftest import SHIPPED
from tests.end_to_end.wire import wire
from tests.reference import ReferenceSession

FloatArray = NDArray[np.float32]


def gates_of(step: Step, layer: int) -> dict[str, FloatArray]:
    """Returns the gates and states of a layer by name, [T, units] each."""
    prefix = f"layer{layer}."
    names = [name for name in step.trace if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): np.array([output.trace[name] for output in step.outputs], np.float32)
        for name in names
    }


@pytest.mark.parametrize("model", ["pychar-en", "stress-en"])
def test_gates_and_states_satisfy_the_equations_of_the_cell(shipped_service: LocalService, model: str) -> None:
    """c' = f c + i g and h' = o tanh c' hold for each unit, in each step and layer."""
    tokens = list("def f(x):") if model == "pychar-en" else ["K", "AE", "R", "AH", "S", "EH", "L", "|", "|"]
    with Client(shipped_service.target) as client, client.session(model) as session:
        step = session.feed(tokens, every_position=True, trace=True)
        layers = {int(name[5]) for name in step.trace}
        for layer in layers:
            found = gates_of(step, layer)
            assert set(found) == {"input_gate", "forget_gate", "output_gate", "candidate", "cell", "hidden"}
            for gate in ("input_gate", "forget_gate", "output_gate"):
                assert ((found[gate] >= 0) & (found[gate] <= 1)).all()
            cell = found["forget_gate"][1:] * found["cell"][:-1] + found["input_gate"][1:] * found["candidate"][1:]
            np.testing.assert_allclose(found["cell"][1:], cell, atol=1e-5)
            hidden = found["output_gate"] * np.tanh(found["cell"])
            np.testing.assert_allclose(found["hidden"], hidden, atol=1e-5)
        state = {
            tensor.name: np.frombuffer(tensor.data, np.float32) for tensor in client.sessions.get_state(session.id)
        }
        reported = np.concatenate([gates_of(step, layer)["cell"][-1] for layer in sorted(layers)])
        np.testing.assert_allclose(reported, state["cell"], atol=1e-5)


def test_a_trace_does_not_change_the_logits(shipped_service: LocalService) -> None:
    """Logits have the same bits with and without a trace."""
    text = list("import os\nimport sys\n")
    with (
        Client(shipped_service.target) as client,
        client.session("pychar-en") as plain,
        client.session("pychar-en") as traced,
    ):
        expected = plain.feed(text, logits=True).logits
        step = traced.feed(text, logits=True, trace=True)
        assert step.logits == expected
        assert len(step.outputs) == 1
        assert len(step.trace["layer0.cell"]) == 384
        again = traced.feed(list("x = 1"), logits=True)
        assert again.trace == {}
        assert again.logits == plain.feed(list("x = 1"), logits=True).logits


def test_the_trace_has_the_attention_weights(shipped_service: LocalService) -> None:
    """From the start token on, each step has one weight for each letter of the session's own source. The weights sum to
    1."""
    with (
        Client(shipped_service.target) as client,
        client.session("g2p-en", "a" * 40) as company,
        client.session("g2p-en", "carousel", trace=True) as session,
    ):
        assert session.first is not None
        company.feed(["EY"])
        step = session.feed(["K", "EH", "R"], every_position=True, trace=True)
        looks = [session.first.trace["attention"], *(output.trace["attention"] for output in step.outputs)]
        assert [len(look) for look in looks] == [8] * 4
        np.testing.assert_allclose([sum(look) for look in looks], 1.0, atol=1e-5)
        places = [max(range(8), key=look.__getitem__) for look in looks]
        assert places == sorted(places), "it reads from left to right"


async def test_a_traced_feed_sent_again_is_answered_again_whole(shipped_service: LocalService) -> None:
    async with wire(shipped_service.target) as stream:
        await stream.ask("s", open=pb.Open(model="co2-forecast", source=pb.Sequence(features=_months())))
        outputs = pb.OutputSpec(trace=True)
        feed = pb.Feed(features=_months(), position=0, outputs=outputs)
        first = await stream.ask("s", feed=feed)
        again = await stream.ask("s", feed=feed)
        assert again.fed.replayed
        assert first.fed.outputs == again.fed.outputs
        assert {trace.name for trace in first.fed.outputs[0].trace} >= {"layer0.cell", "layer0.input_gate"}


def test_a_snapshot_keeps_the_answer_of_a_traced_feed(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as client, client.session("stress-en") as session:
        session.feed(["K", "AE"], trace=True)
        client.sessions.restore(client.sessions.snapshot(session.id), session_id="traced-copy")
        with client.resume("traced-copy") as copy:
            assert copy.position == 2


def test_a_model_without_a_trace_says_so(tiny_service: LocalService) -> None:
    with Client(tiny_service.target) as client, client.session("tiny-bos") as session:
        with pytest.raises(InvalidArgumentError, match=r"feed\.outputs\.trace must not be set: tiny-bos has no trace"):
            session.feed([5], trace=True)
        with pytest.raises(InvalidArgumentError, match=r"open\.outputs\.trace must not be set: tiny-bos has no trace"):
            client.session("tiny-bos", trace=True)


def test_the_reference_of_a_forecast_is_traced_too(shipped_service: LocalService) -> None:
    """Values with a trace have the bits of a plain loop without one."""
    months = np.frombuffer(_months().data, "<f4").reshape(-1, 1)
    reference = ReferenceSession(SHIPPED / "co2-forecast" / "1", list(months))
    with Client(shipped_service.target) as client, client.session("co2-forecast", months) as session:
        step = session.feed(features=months[:3], every_position=True, trace=True)
        expected = [reference.step(row) for row in months[:3]]
        assert (
            np.array([output.values for output in step.outputs], np.float32).tobytes() == np.array(expected).tobytes()
        )


def _months() -> pb.Tensor:
    values = (340 + np.sin(np.arange(18) / 2)).astype("<f4")
    return pb.Tensor(shape=[18, 1], data=values.tobytes())

"""Adds the last tokens as a state of the step, for subword models: the server makes text from them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from export.interface import Interface
from service.repository.manifest import StateSpec, TensorSpec
from service.repository.steps import HISTORY


class WithHistory(nn.Module):
    """A step that shifts its tokens into one more state, after its other states. num_states: the number of those."""

    def __init__(self, step: nn.Module, num_states: int) -> None:
        super().__init__()
        self.step = step
        self.num_states = num_states

    def forward(self, tokens: Tensor, lengths: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Returns the step's outputs and the next history.

        tokens: [B, T] int64; lengths: [B]; carried: the step's states, the history [B, `HISTORY`] int64, and the
        contexts.
        """
        states, history, contexts = (
            carried[: self.num_states],
            carried[self.num_states],
            carried[self.num_states + 1 :],
        )
        logits, *following = self.step(tokens, lengths, *states, *contexts)
        places = lengths.unsqueeze(1) + torch.arange(HISTORY).unsqueeze(0)  # [B, HISTORY]
        return (logits, *following, torch.cat([history, tokens], dim=1).gather(1, places))


def with_history(interface: Interface, step: nn.Module) -> tuple[Interface, nn.Module]:
    """Returns the interface and the step with a state of the last tokens, which begins with zeros."""
    tensor = TensorSpec(name="history", dtype="int64", shape=("batch", HISTORY))
    state = StateSpec(name="history", input=tensor, output="next_history")
    extended = dataclasses.replace(
        interface,
        step=interface.step.model_copy(update={"history": state.name}),
        states=(*interface.states, state),
    )
    return extended, WithHistory(step, len(interface.states)).eval()

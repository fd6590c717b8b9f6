"""Calls of both clients about models."""

from __future__ import annotations

import pytest

from carousel import InvalidArgumentError, NotFoundError

from .shells import Shell


async def test_models_are_loaded_and_failures_give_their_reason(shell: Shell) -> None:
    (everything,) = await shell.load_models()
    assert (everything.model, everything.version) == ("all", 9)
    (one,) = await shell.load_models("toy", 2)
    assert (one.model, one.version, one.problem) == ("toy", 2, "torn")


async def test_a_model_is_unloaded_and_sessions_that_stay_with_it_are_counted(shell: Shell) -> None:
    assert await shell.unload_model("toy", 7) == 3
    with pytest.raises(NotFoundError, match="model 'none' is unknown"):
        await shell.unload_model("none", 7)


async def test_a_version_that_is_no_number_is_refused(shell: Shell) -> None:
    for call in (shell.load_models, shell.unload_model):
        with pytest.raises(InvalidArgumentError, match="version = -1"):
            await call("toy", -1)

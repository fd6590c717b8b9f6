"""`python -m benchmarks chaos` makes every model that its sessions open, and its sessions are reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import chaos
from benchmarks.chaos_scripts import TRANSLATOR, Listener, Script
from benchmarks.subjects import SMALL
from benchmarks.translators import Translator


def test_every_model_that_a_session_opens_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transducer and a translator of two files are among them."""
    made: list[str] = []
    monkeypatch.setattr(chaos, "export", lambda subject: made.append(subject.name))
    monkeypatch.setattr(Translator, "export", lambda self: made.append(self.name))
    folder = chaos.make_models(tmp_path)
    assert made == [SMALL.name, TRANSLATOR.name]
    opened = {chaos.kind_of(number)(number, 1).model for number in range(60)}
    assert opened == {path.name for path in folder.iterdir()} == {"g2p-en", "morse", SMALL.name, TRANSLATOR.name}


def test_a_session_is_reproducible() -> None:
    """The number and the seed determine what a session translates and the frames that it sends."""
    number = next(number for number in range(60) if Script(number, 1).model == TRANSLATOR.name)
    source = Script(number, 1).source
    assert source is not None
    assert source == Script(number, 1).source
    assert source != Script(number, 2).source
    assert all(0 <= int(token) < TRANSLATOR.tokens for token in source.split())
    frames = [[Listener(number, 1).frame() for _ in range(3)] for number in (3, 3, 7)]
    assert frames[0] == frames[1]

"""The second part of the demo prints a translation as it arrives, and draws its attention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import local_service

pytest.importorskip("torch")

from carousel import Client
from examples.translation import MODEL, SENTENCE, WIDTH, translate
from tests.translator import write_translator

TIMES = re.compile(r"  first word after (\d+\.\d) ms, last after (\d+\.\d) ms")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service with a translator of random weights."""
    folder = write_translator(tmp_path_factory, MODEL)
    with local_service(folder) as service, Client(service.target) as client:
        yield client


def test_words_are_printed_as_they_come_and_their_attention_is_drawn(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = client.generate(MODEL, SENTENCE)
    for _ in generation:
        pass
    translate(client)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"  {SENTENCE}")
    assert lines[at + 1] == f"  {generation.text}"
    times = TIMES.fullmatch(lines[at + 2])
    assert times is not None
    assert 0 < float(times[1]) <= float(times[2])
    picture = lines[at + 6 :]
    assert max(map(len, picture)) <= WIDTH + 2
    header, *rows = picture[: picture.index("")]
    assert "".join(header.split()) == SENTENCE.replace(" ", "")
    names = [row.split()[0] for row in rows]
    assert "".join(names) == generation.text.replace(" ", "")


def test_the_translation_is_left_out_without_its_model(
    tiny_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with local_service(tiny_repository) as service, Client(service.target) as client:
        translate(client)
    assert capsys.readouterr().out == f"\nThe server has no {MODEL}: the translation of a sentence is left out.\n"

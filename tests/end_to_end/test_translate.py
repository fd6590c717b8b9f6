"""The shipped translator returns the results of a plain loop: in batches, cut inside a word, in copies and in
searches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from carousel import Client, Generation
from examples.local_service import LocalService
from service.engine.decoding import log_softmax
from tests.conftest import SHIPPED, only
from tests.reference import ReferenceSession
from tests.services import local_service

MODEL = "translate-en-de"
BUNDLE = SHIPPED / MODEL / "1"
SENTENCES = [
    f"{first} {second}."
    for first, second in product(
        (
            "The file",
            "This window",
            "Your password",
            "The selected printer",
            "The network connection of this device",
            "A new version",
            "The last backup of %1",
            "Every message in the folder",
        ),
        (
            "could not be opened",
            "is not available",
            "will be deleted",
            "was changed",
            "must not be empty",
            "has been updated by another user",
            "cannot be restored because it is too old",
            "is required",
        ),
    )
]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def pieces() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=(BUNDLE / "target.subwords").read_bytes())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the translator alone."""
    return only(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as one:
        yield one


@pytest.fixture(scope="module")
def alone(pieces: SentencePieceProcessor) -> dict[str, list[int]]:
    """Returns the translation of each sentence by a plain loop over the graphs."""
    return {text: ReferenceSession(BUNDLE, pieces.encode(text)).generate(MAX_TOKENS) for text in SENTENCES}


def ids_and_text(generation: Generation) -> tuple[list[int], str]:
    ids = [token.id for token in generation]
    return ids, generation.text


def test_64_concurrent_translations_are_the_same_as_alone(
    service: LocalService, alone: dict[str, list[int]], pieces: SentencePieceProcessor
) -> None:
    with Client(service.target) as client, ThreadPoolExecutor(64) as threads:
        found = threads.map(lambda text: ids_and_text(client.generate(MODEL, text, max_tokens=MAX_TOKENS)), SENTENCES)
        for text, each in zip(SENTENCES, found, strict=True):
            assert each == (alone[text], pieces.decode(alone[text]))


def test_a_translation_resumes_inside_a_word_after_its_server_was_killed(
    repository: Path, tmp_path: Path, alone: dict[str, list[int]], pieces: SentencePieceProcessor
) -> None:
    text = next(text for text in SENTENCES if any(map(_is_inside, *_neighbours(pieces, alone[text]))))
    ids = alone[text]
    cut = 1 + list(map(_is_inside, *_neighbours(pieces, ids))).index(True)
    flags = {"store": "lmdb", "data-folder": tmp_path / "data"}
    with local_service(repository, flags) as service, Client(service.target) as client:
        session = client.session(MODEL, text, session_id="kept", on_disconnect="keep", durability="strict")
        first = session.generate(max_tokens=cut)
        assert ids_and_text(first)[0] == ids[:cut]
        assert first.unfinished_text
        service.kill()
    with local_service(repository, flags) as service, Client(service.target) as client:
        rest, text_of_rest = ids_and_text(client.resume("kept").generate(max_tokens=MAX_TOKENS - cut))
        assert rest == ids[cut:]
        assert first.text.removesuffix(first.unfinished_text) + text_of_rest == pieces.decode(ids)


def test_a_fork_and_its_session_generate_the_same(
    service: LocalService, alone: dict[str, list[int]], pieces: SentencePieceProcessor
) -> None:
    text = SENTENCES[0]
    with Client(service.target) as client, client.session(MODEL, text) as session:
        first = session.generate(max_tokens=2)
        assert ids_and_text(first)[0] == alone[text][:2]
        before = first.text.removesuffix(first.unfinished_text)
        client.sessions.fork(session.id, "other")
        with client.resume("other") as other:
            for one in (session, other):
                rest, text_of_rest = ids_and_text(one.generate(max_tokens=MAX_TOKENS - 2))
                assert rest == alone[text][2:]
                assert before + text_of_rest == pieces.decode(alone[text])


def test_a_search_finds_likelier_translations_and_returns_their_texts(
    service: LocalService, alone: dict[str, list[int]], pieces: SentencePieceProcessor
) -> None:
    """The likelihood of each hypothesis is that of a plain loop, within 1e-4."""
    text = SENTENCES[5]
    with Client(service.target) as client:
        search = client.generate(MODEL, text, beam_size=4, num_best=4, max_tokens=MAX_TOKENS)
        ids_and_text(search)
    best, *others = search.hypotheses
    assert len(others) == 3
    assert best.score >= max(other.score for other in others)
    for one in search.hypotheses:
        ids = [token.id for token in one.tokens]
        assert one.text == pieces.decode(ids)
        reference, total = ReferenceSession(BUNDLE, pieces.encode(text)), 0.0
        for token in [*ids, 2]:
            assert reference.logits is not None
            total += float(log_softmax(reference.logits)[token])
            reference.step(token)
        assert one.log_probability == pytest.approx(total, abs=1e-4)


def _neighbours(pieces: SentencePieceProcessor, ids: list[int]) -> tuple[list[str], list[str]]:
    names = [pieces.id_to_piece(one) for one in ids]
    return names, names[1:]


def _is_inside(before: str, after: str) -> bool:
    """Returns whether a word continues from one piece to the next."""
    return before.startswith("▁") and after.isalpha()

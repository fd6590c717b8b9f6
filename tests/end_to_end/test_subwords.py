"""A translator of subwords reads and returns texts, and a session may be cut anywhere inside a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

from sentencepiece import SentencePieceProcessor

from carousel import Client, DecodingOptions, Generation, Session
from examples.local_service import LocalService
from tests.cli.shell import Shell
from tests.services import local_service
from tests.subwords import model
from tests.translator import write_translator

SOURCE = "the old mouse opens the door"
MODEL = "mice"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translator(tmp_path_factory, MODEL)


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as one:
        yield one


TEMPERATURE, SEED = 1.5, 3


@pytest.fixture(scope="module")
def whole(service: LocalService) -> tuple[list[int], str]:
    """Returns the tokens and the text of a generation in one part."""
    with Client(service.target) as client:
        return ids_and_text(client.generate(MODEL, SOURCE, max_tokens=60, temperature=TEMPERATURE, seed=SEED))


def ids_and_text(generation: Generation) -> tuple[list[int], str]:
    ids = [token.id for token in generation]
    return ids, generation.text


def parts(session: Session, counts: Sequence[int]) -> tuple[list[int], str, str]:
    """Generates in several parts. Returns the tokens, the text of their complete words, and the incomplete last
    word."""
    ids, complete, rest = [], "", ""
    for count in counts:
        generation = session.generate(max_tokens=count, temperature=TEMPERATURE, seed=SEED)
        ids += [token.id for token in generation]
        rest = generation.unfinished_text
        complete += generation.text.removesuffix(rest)
    return ids, complete, rest


def test_a_text_is_cut_and_words_come_back(service: LocalService, whole: tuple[list[int], str]) -> None:
    processor = SentencePieceProcessor(model_proto=model())
    ids, text = whole
    assert len(ids) == 60
    assert len(text.split()) > 5
    assert text == processor.decode(ids)
    with Client(service.target) as client:
        by_ids = client.generate(MODEL, processor.encode(SOURCE), max_tokens=60, temperature=TEMPERATURE, seed=SEED)
        assert ids_and_text(by_ids) == whole, "the server cuts the source as SentencePiece does"


@pytest.mark.parametrize("count", [1, 2, 15])
def test_parts_of_a_generation_have_its_text(service: LocalService, whole: tuple[list[int], str], count: int) -> None:
    """Each part ends with the incomplete word. The next part repeats that word and continues it."""
    with Client(service.target) as client, client.session(MODEL, SOURCE) as session:
        ids, complete, rest = parts(session, [count] * (60 // count))
    assert (ids, complete + rest) == whole


@pytest.mark.parametrize("cut", [5, 6, 7, 8])
def test_a_copy_continues_inside_a_word(service: LocalService, whole: tuple[list[int], str], cut: int) -> None:
    """The copies are a fork, and a session restored from a snapshot."""
    with Client(service.target) as client:
        with client.session(MODEL, SOURCE) as session:
            first, complete, _ = parts(session, [cut])
            client.sessions.fork(session.id, f"fork-{cut}")
            snapshot = client.sessions.snapshot(session.id)
            client.sessions.restore(snapshot, session_id=f"copy-{cut}")
            following = [parts(session, [60 - cut])]
        for name in (f"fork-{cut}", f"copy-{cut}"):
            with client.resume(name) as copy:
                following.append(parts(copy, [60 - cut]))
    for ids, more, last in following:
        assert (first + ids, complete + more + last) == whole


def test_the_hypotheses_of_a_search_have_texts(service: LocalService) -> None:
    processor = SentencePieceProcessor(model_proto=model())
    with Client(service.target) as client, client.session(MODEL, SOURCE) as session:
        found = session.generate(max_tokens=12, beam_size=3, num_best=3)
        ids = [token.id for token in found]
        assert found.text == processor.decode(ids)
        assert [one.text for one in found.hypotheses] == [
            processor.decode([token.id for token in one.tokens]) for one in found.hypotheses
        ]
        before = found.text.removesuffix(found.unfinished_text)
        more = session.generate(max_tokens=5, beam_size=2)
        ids += [token.id for token in more]
        assert before + more.text == processor.decode(ids)


@pytest.mark.parametrize(
    "decoding", [{"beam_size": 3, "max_tokens": 20}, {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": 20}]
)
def test_many_generations_have_the_texts_of_single_ones(service: LocalService, decoding: DecodingOptions) -> None:
    sources = [SOURCE, "a mouse", "the doors of old houses", SOURCE]
    with Client(service.target) as client:
        expected = [ids_and_text(client.generate(MODEL, source, **decoding)) for source in sources]
        results = list(client.generate_many(MODEL, sources, **decoding))
    assert [([token.id for token in result.tokens], result.text) for result in results] == expected


def test_the_command_prints_texts_line_by_line(service: LocalService) -> None:
    with Client(service.target) as client:
        best = client.generate(MODEL, SOURCE, max_tokens=12, beam_size=3, num_best=2)
        texts = [ids_and_text(best)[1], *(hypothesis.text for hypothesis in best.hypotheses)]
    text, *of_hypotheses = (one.replace("\n", " ") for one in texts)
    options = ("--max-tokens", "12", "--beam-size", "3")
    shell = Shell(service.target)
    assert shell.out("translate", MODEL, *options, typed=f"{SOURCE}\n\n{SOURCE}\n") == f"{text}\n\n{text}\n"
    found = shell.out("generate", MODEL, SOURCE, *options, "--num-best", "2")
    assert [line.split(maxsplit=1)[1] for line in found.splitlines()] == [one.strip() for one in of_hypotheses]


def test_a_session_that_is_rewound_inside_a_word_returns_the_word_again(service: LocalService) -> None:
    with Client(service.target) as client, client.session(MODEL, SOURCE) as session:
        words = SentencePieceProcessor(model_proto=model()).encode("the small", out_type=int)
        session.feed(words[:-1], mark=True)
        first = ids_and_text(session.generate(max_tokens=9, temperature=TEMPERATURE, seed=SEED))
        session.rewind(len(words) - 1)
        assert ids_and_text(session.generate(max_tokens=9, temperature=TEMPERATURE, seed=SEED)) == first
        assert first[1].startswith((" small", " smal"))


def test_another_server_continues_inside_a_word(repository: Path, tmp_path: Path, whole: tuple[list[int], str]) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path / "data"}
    with local_service(repository, flags) as one, Client(one.target) as client:
        session = client.session(MODEL, SOURCE, session_id="kept", on_disconnect="keep")
        first, complete, _ = parts(session, [7])
    with local_service(repository, flags) as other, Client(other.target) as client:
        ids, more, last = parts(client.resume("kept"), [53])
    assert (first + ids, complete + more + last) == whole

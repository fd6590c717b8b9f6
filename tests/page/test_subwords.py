"""A model of subwords on the page: the growing text, and attention over pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

from playwright.sync_api import Browser, Locator, expect
from sentencepiece import SentencePieceProcessor

from carousel import Client
from examples.local_service import LocalService
from tests.page.tab import Tab, ask, tab
from tests.page.test_accessibility import check
from tests.services import local_service
from tests.subwords import model
from tests.translator import write_translator

MODEL = "tiny-translator"
SOURCE = "the old mouse opens the door"
NUM = 8


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service with a translator of random weights."""
    folder = write_translator(tmp_path_factory, MODEL)
    with local_service(folder, {"wire": "envoy"}) as service:
        yield service
        assert not [line for line in service.log if line["level"] == "error"]


@pytest.fixture
def page(browser: Browser, server: LocalService) -> Iterator[Tab]:
    """A tab with a session. No request may fail in it."""
    with tab(browser, server.target) as made:
        made.open(MODEL, SOURCE)
        yield made
        assert made.failures == []


@pytest.fixture(scope="module")
def generated(server: LocalService) -> list[str]:
    """The pieces that the model generates."""
    with Client(server.target) as client:
        return [token.text for token in client.generate(MODEL, SOURCE, max_tokens=NUM)]


def text(page: Tab) -> Locator:
    return page.column().get_by_label("Text", exact=True)


def generate(page: Tab, num: int) -> None:
    page.column().get_by_label("Tokens").fill(str(num))
    page.column().get_by_role("button", name="Generate").click()
    expect(page.column().get_by_role("button", name="Generate")).to_be_visible()


def shown(pieces: list[str]) -> list[str]:
    """Returns the pieces as the page shows them."""
    return [piece.replace("▁", "␣", 1) if piece.startswith("▁") else piece for piece in pieces]


def test_the_text_grows_and_an_unfinished_word_is_paler(page: Tab, generated: list[str]) -> None:
    processor = SentencePieceProcessor(model_proto=model())
    expect(text(page)).to_have_text("Nothing yet.")
    expect(page.box()).to_be_hidden()
    for position in range(1, NUM + 1):
        generate(page, 1)
        page.expect_position(position)
        pieces = generated[:position]
        expect(text(page)).to_have_text(processor.decode_pieces(pieces))
        begin = max((at for at, piece in enumerate(pieces) if piece.startswith("▁")), default=0)
        expect(text(page).locator(".muted")).to_have_text(processor.decode_pieces(pieces[begin:]))
    answer = ask(page.target, "Inference/Step", sessionId=page.ids()[0])
    assert answer["position"] == str(NUM)


def test_the_text_follows_the_session_back(page: Tab, generated: list[str]) -> None:
    processor = SentencePieceProcessor(model_proto=model())
    generate(page, NUM)
    page.expect_position(NUM)
    page.step(5).click()
    page.expect_position(5)
    expect(text(page)).to_have_text(processor.decode_pieces(generated[:5]))
    page.page.reload()
    page.expect_position(5)
    expect(text(page)).to_have_text(processor.decode_pieces(generated[:5]))


def test_attention_is_of_the_pieces_of_the_source_before_each_piece(page: Tab, generated: list[str]) -> None:
    source = SentencePieceProcessor(model_proto=model()).encode(SOURCE, out_type=str)
    generate(page, NUM - 1)
    page.expect_position(NUM - 1)
    attention = page.column().locator(".attention")
    assert attention.locator(".row-names span").all_text_contents() == shown(source)
    assert attention.locator(".column-names span").all_text_contents() == shown(generated)
    with Client(page.target) as client, client.session(MODEL, SOURCE, first=True, trace=True) as session:
        assert session.first is not None
        weights = session.first.trace["attention"]
    picture = page.column().get_by_role("img", name="Attention")
    picture.focus()
    picture.press("ArrowDown")
    expected = f"Attention, before “{shown(generated)[0]}”, “{shown(source)[1]}”: {weights[1]:.3f}"
    expect(attention.locator("output")).to_have_text(expected)
    check(page)

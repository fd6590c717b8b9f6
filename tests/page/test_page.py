"""A person's actions on the page, in a real browser with a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from examples.local_service import LocalService
from examples.ports import free_port
from tests.page.tab import Tab, ask, tab
from tests.services import local_service, program
from tests.waiting import wait_until

TYPED = "import "
SOURCE = [370.2, 371.5, 372.4, 371.8, 370.1, 368.0, 366.3, 366.5, 367.9, 369.1, 370.0, 370.9]


def tensor(numbers: list[float]) -> dict[str, Any]:
    """Returns steps of one number each, as a tensor in JSON."""
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    return {"shape": [len(numbers), 1], "data": base64.b64encode(data).decode()}


def test_each_key_is_a_step_and_what_comes_next_is_told(page: Tab) -> None:
    page.open("pychar-en")
    page.box().press_sequentially(TYPED)
    page.expect_position(len(TYPED))
    feed = {"tokens": list(TYPED), "position": 0, "outputs": {"kind": "OUTPUT_KIND_TOP_K", "topK": 8}}
    answer = ask(page.target, "Inference/Step", sessionId="alone", open={"model": "pychar-en"}, feed=feed)
    tokens = answer["fed"]["outputs"][0]["tokens"]
    assert page.expected() == [token["text"] for token in tokens]
    share = f"{100 * math.exp(tokens[0]['logProbability']):.0f} %"
    expect(page.column().locator(".candidate").first).to_contain_text(share)
    page.column().locator(".candidate").first.click()
    page.expect_position(len(TYPED) + 1)
    expect(page.box()).to_have_value(TYPED + tokens[0]["text"])
    page.box().press("Backspace")
    page.box().press("Backspace")
    page.expect_position(len(TYPED) - 1)
    assert page.most_at_once == 1


def test_a_click_on_a_step_rewinds_to_it_also_without_a_mark(page: Tab) -> None:
    page.open("pychar-en")
    page.box().press_sequentially("import os, sys")
    page.expect_position(14)
    likely = page.expected()
    page.step(9).click()
    page.expect_position(9)
    expect(page.box()).to_have_value("import os")
    page.box().press_sequentially(", re")
    page.expect_position(13)
    assert page.expected() != likely
    (session,) = page.ids()
    page.step(2).click()
    expect(page.status()).to_contain_text("No mark is kept at step 2")
    page.expect_position(2)
    expect(page.box()).to_have_value("im")
    assert page.ids() != [session]
    page.box().press_sequentially("p")
    page.expect_position(3)
    assert page.expected()[0] == "o"


def test_a_fork_goes_its_own_way_beside_the_session(page: Tab) -> None:
    page.open("g2p-en", "carousel")
    page.box().press_sequentially("K EH ")
    page.expect_position(2)
    page.column().get_by_role("button", name="Fork").click()
    page.expect_position(2, 1)
    assert page.expected(1) == page.expected(0)
    page.box(1).press_sequentially("R AH ")
    page.expect_position(4, 1)
    page.box(0).press_sequentially("L ")
    page.expect_position(3, 0)
    assert page.most_at_once <= 2
    positions = {one: ask(page.target, "Inference/Step", sessionId=one).get("position") for one in page.ids()}
    assert list(positions.values()) == ["3", "4"]
    page.page.reload()
    page.expect_position(4, 1)
    expect(page.box(1)).to_have_value("K EH R AH ")
    page.column(1).get_by_role("button", name="Close").click()
    expect(page.page.locator(".column")).to_have_count(1)
    assert page.ids() == list(positions)[:1]


def test_a_reload_finds_the_session_again(page: Tab, browser: Browser) -> None:
    page.open("g2p-en", "gate")
    page.box().press_sequentially("G ")
    page.expect_position(1)
    ids, likely = page.ids(), page.expected()
    page.page.reload()
    page.expect_position(1)
    expect(page.box()).to_have_value("G ")
    assert (page.ids(), page.expected()) == (ids, likely)
    expect(page.column().get_by_role("img", name="Attention")).to_be_visible()
    with tab(browser, page.target) as elsewhere:  # only the address is known here
        elsewhere.page.goto(page.page.url)
        elsewhere.expect_position(1)
        expect(elsewhere.box()).to_have_value("")
        elsewhere.box().press_sequentially("EY ")
        elsewhere.expect_position(2)
        assert ask(page.target, "Inference/Step", sessionId=ids[0])["position"] == "2"


def test_a_steps_trace_is_shown(page: Tab) -> None:
    page.open("g2p-en", "gate")
    page.box().press_sequentially("G EY ")
    page.expect_position(2)
    attention = page.column().get_by_role("img", name="Attention")
    attention.focus()
    attention.press("ArrowDown")
    expect(page.column().locator(".attention output")).to_contain_text("before “G”, “a”")
    page.column().get_by_label("layer 0").check()
    expect(page.column().get_by_role("img", name="Forget gate")).to_be_visible()
    page.column().get_by_role("img", name="Forget gate").hover(position={"x": 2, "y": 2})
    expect(page.column().locator(".tip.is-shown")).to_contain_text("unit ")


def test_the_model_chooses_until_it_ends_or_is_stopped(page: Tab) -> None:
    page.open("g2p-en", "carousel")
    page.column().get_by_label("Temperature").fill("0")
    page.column().get_by_role("button", name="Generate").click()
    expect(page.status()).to_contain_text("chose to end")
    expect(page.box()).to_have_value("K EH R AH S EH L ")
    assert page.most_at_once == 1
    page.choose("pychar-en")
    page.column().get_by_label("Tokens").fill("900")
    page.column().get_by_role("button", name="Generate").click()
    expect(page.step(5)).to_be_visible()
    page.column().get_by_role("button", name="Stop").click()
    expect(page.column().get_by_role("button", name="Generate")).to_be_visible()


def test_numbers_are_fed_and_forecast_and_the_session_stays_where_it_is(page: Tab) -> None:
    page.open("co2-forecast", " ".join(map(str, SOURCE)))
    page.column().get_by_label("Observed next").fill("372.1; 373")
    page.column().get_by_role("button", name="Feed").click()
    page.expect_position(2)
    page.column().get_by_label("Steps ahead").fill("3")
    page.column().get_by_role("button", name="Forecast").click()
    fed: dict[str, Any] = {"open": {"model": "co2-forecast", "source": {"features": tensor(SOURCE)}}}
    ahead = [372.1, 373.0]
    for _ in range(3):
        answer = ask(page.target, "Inference/Step", **fed, feed={"features": tensor(ahead)})
        ahead.append(answer["fed"]["outputs"][0]["values"][0])
    text = f"14 observed, the last one 373, 3 forecast, up to {ahead[-1]:.3f} at step 5."
    expect(page.column().get_by_role("img", name="Plot:")).to_have_attribute("aria-label", f"Plot: {text}")
    page.expect_position(2)
    (session,) = page.ids()
    assert ask(page.target, "Inference/Step", sessionId=session)["position"] == "2"
    assert ask(page.target, "Sessions/Get", sessionId=session)["session"]["marks"] == ["2"]


def test_the_curl_line_gives_the_same_answer_in_a_shell(page: Tab) -> None:
    program("curl")
    page.open("pychar-en")
    page.box().press_sequentially("it's")
    page.expect_position(4)
    page.page.get_by_text("The call made last").click()
    line = page.column().get_by_label("curl lines").text_content()
    assert line is not None
    answer = json.loads(subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=10).stdout)
    assert (answer["position"], answer["fed"]["replayed"]) == ("4", True)
    assert [token["text"] for token in answer["fed"]["outputs"][0]["tokens"]][:8] == [
        {"␣": " ", "↵": "\n"}.get(name, name) for name in page.expected()
    ]
    lines = page.column().get_by_label("Python lines").text_content()
    assert f'client.step("{page.ids()[0]}", ["s"], position=3, top_k=16, trace=True, mark=True)' in str(lines)


def test_a_refusal_is_shown_with_the_servers_message(browser: Browser, server: LocalService) -> None:
    with tab(browser, server.target) as page:
        page.open("g2p-en", "gate")
        page.box().press_sequentially("G É ")
        problem = page.column().get_by_role("alert")
        expect(problem).to_have_text("feed.tokens[0] = 'É' is not in the vocabulary of g2p-en")
        expect(page.box()).to_have_attribute("aria-invalid", "true")
        page.expect_position(1)
        page.box().press("Backspace")
        expect(problem).to_have_text("")
        page.box().press("Backspace")
        page.box().press_sequentially("EY ")
        page.expect_position(2)
        assert len(page.failures) == 1


@pytest.mark.parametrize("store", ["lmdb", "memory"])
def test_the_page_reconnects_after_its_server_was_killed(
    browser: Browser, tiny_repository: Path, tmp_path: Path, store: str
) -> None:
    """If the session was stored, it continues. If not, a new session is fed the same tokens."""
    port = free_port()
    flags = {"wire": "envoy", "port": port, "store": store, "data-folder": tmp_path}
    with tab(browser, f"127.0.0.1:{port}") as page:
        with local_service(tiny_repository, flags) as service:
            page.open("tiny-endless")
            page.box().press_sequentially("t5 t6 ")
            page.expect_position(2)
            (session,) = page.ids()
            if store == "lmdb":
                request = {"sessionId": session}
                wait_until(lambda: ask(service.target, "Inference/Step", **request).get("checkpointPosition") == "2")
            service.kill()
            page.box().press_sequentially("t7 ")
            expect(page.status()).to_contain_text("Not connected")
        with local_service(tiny_repository, flags) as service:
            if store == "memory":
                page.column().get_by_role("button", name="Try now").click()
            page.expect_position(3)
            expect(page.status()).to_contain_text("Connected again" if store == "lmdb" else "had lost the session")
            assert (page.ids() == [session]) == (store == "lmdb")
            page.box().press_sequentially("t8 ")
            page.expect_position(4)
            assert ask(service.target, "Inference/Step", sessionId=page.ids()[0])["position"] == "4"
            feed = {"tokens": ["t5", "t6", "t7", "t8"], "outputs": {"kind": "OUTPUT_KIND_TOP_K", "topK": 8}}
            answer = ask(service.target, "Inference/Step", open={"model": "tiny-endless"}, feed=feed)
            assert page.expected() == [token["text"] for token in answer["fed"]["outputs"][0]["tokens"]]


def test_the_page_sends_a_token_if_the_server_requires_it(
    browser: Browser, tiny_repository: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"of-the-test").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[principals.app]\ntoken_sha256 = ["{digest}"]\n')
    flags = {"wire": "envoy", "tokens-file": tmp_path / "tokens.toml"}
    with local_service(tiny_repository, flags) as service, tab(browser, service.target) as page:
        page.page.goto(f"http://{service.target}/")
        expect(page.page.get_by_label("Token", exact=True)).to_be_focused()
        page.page.get_by_label("Token", exact=True).fill("wrong")
        page.page.keyboard.press("Enter")
        expect(page.page.locator("#token-problem")).to_contain_text("token")
        page.page.get_by_label("Token", exact=True).fill("of-the-test")
        page.page.keyboard.press("Enter")
        page.choose("tiny-bos")
        page.box().press_sequentially("t5 ")
        page.expect_position(1)
        page.page.reload()
        page.expect_position(1)
        assert page.page.locator("#token-form").is_hidden()
        lines = page.column().get_by_label("curl lines")
        page.box().press_sequentially("t6 ")
        expect(lines).to_contain_text('-H "authorization: Bearer $CAROUSEL_TOKEN"')

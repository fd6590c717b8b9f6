"""Which web pages may call the server."""

from __future__ import annotations

import pytest

from service.wire.envoy.browsers import Browsers

ALLOWED = ["https://app.example"]
LOCAL, OPEN = (
    Browsers("127.0.0.1", ALLOWED, ["Carousel.example", "[::2]"]),
    Browsers("0.0.0.0", ALLOWED, ["carousel.example"]),
)
WITHOUT = Browsers("127.0.0.1", ALLOWED, None)


@pytest.mark.parametrize(
    ("browsers", "version", "host", "origin"),
    [
        (LOCAL, "2", "carousel:50051", None),  # a gRPC client may call this machine as it likes
        (LOCAL, "1.1", "localhost:50051", None),
        (LOCAL, "1.1", "127.0.0.1:50051", None),
        (LOCAL, "1.1", "[::1]:50051", None),
        (LOCAL, "1.1", "localhost:50051", "https://app.example"),
        (OPEN, "1.1", "carousel.example", "https://app.example"),
        (OPEN, "1.1", "carousel.example", None),
        # the server's own page
        (LOCAL, "1.1", "localhost:50051", "http://localhost:50051"),
        (LOCAL, "1.1", "[::1]:50051", "http://[::1]:50051"),
        (LOCAL, "1.1", "carousel.example", "https://carousel.example"),  # a proxy on this machine
        (OPEN, "1.1", "carousel.example", "https://carousel.example"),
        (OPEN, "1.1", "CAROUSEL.example", "https://CAROUSEL.example"),
        (OPEN, "1.1", "10.0.0.5:50051", "http://10.0.0.5:50051"),  # for an address nothing is looked up
        (OPEN, "2", "[fd00::5]:50051", "https://[fd00::5]:50051"),
        # other spellings
        (LOCAL, "1.1", "localhost.:50051", "http://localhost.:50051"),
        (LOCAL, "1.1", "[0:0:0:0:0:0:0:1]:50051", None),
        (LOCAL, "1.1", "[::2]:50051", "http://[::2]:50051"),
        (OPEN, "1.1", "carousel.example.", "https://carousel.example."),
    ],
)
def test_allowed_origins_may_call(browsers: Browsers, version: str, host: str, origin: str | None) -> None:
    assert browsers.reason_against(version, host, origin) is None


@pytest.mark.parametrize(
    ("browsers", "version", "host", "origin", "words"),
    [
        (LOCAL, "1.1", "evil.example:50051", None, "host is"),
        (LOCAL, "1.1", "evil.example:50051", "http://evil.example:50051", "host is"),
        (LOCAL, "2", "evil.example:50051", "http://evil.example:50051", "host is"),
        (LOCAL, "1.1", "localhost:50051", "http://localhost:8080", "origin"),
        (LOCAL, "1.1", "localhost:50051", "null", "origin"),
        (LOCAL, "1.1", "localhost:50051", "http://127.0.0.1:50051", "origin"),
        (LOCAL, "1.1", "10.0.0.5:50051", "http://10.0.0.5:50051", "host is"),
        (WITHOUT, "1.1", "localhost:50051", "http://localhost:50051", "origin"),
        (WITHOUT, "1.1", "carousel.example", None, "host is"),
        (LOCAL, "1.1", "", None, "host is"),
        (LOCAL, "1.1", "[", None, "host is"),
        (LOCAL, "1.1", "[::1].evil.example", None, "host is"),
        (LOCAL, "1.1", "[::1]x", "http://[::1]x", "host is"),
        (LOCAL, "1.1", "127.0.0.1:80:80", None, "host is"),
        (LOCAL, "1.1", "localhost..", None, "host is"),
        (LOCAL, "1.1", "[::3]", None, "host is"),
        (OPEN, "1.1", "[::zz]", "http://[::zz]", "host is"),
        (LOCAL, "1.1", "user@localhost", None, "host is"),
        (OPEN, "1.1", "carousel.example", "https://evil.example", "origin"),
        (OPEN, "1.1", "carousel.example", "https://[", "origin"),
        (OPEN, "1.1", "", "null", "origin"),
        (OPEN, "1.1", "evil.example:50051", "http://evil.example:50051", "page_hosts"),  # DNS rebinding
        (OPEN, "1.1", "carousel.example:1", "https://carousel.example", "origin"),
        (OPEN, "1.1", "carousel.example", "ftp://carousel.example", "origin"),
    ],
)
def test_pages_of_other_origins_may_not_call(
    browsers: Browsers, version: str, host: str, origin: str | None, words: str
) -> None:
    assert words in str(browsers.reason_against(version, host, origin))


@pytest.mark.parametrize(
    ("browsers", "host", "words"),
    [
        (LOCAL, "localhost:50051", None),
        (LOCAL, "carousel.example", None),
        (LOCAL, "localhost.:50051", None),
        (LOCAL, "[::2]:50051", None),
        (OPEN, "10.0.0.5:50051", None),
        (LOCAL, "10.0.0.5:50051", "page_hosts"),
        (OPEN, "evil.example", "page_hosts"),
        (OPEN, "[", "page_hosts"),
        (WITHOUT, "localhost", "this server has no page"),
    ],
)
def test_the_page_is_given_under_names_that_are_the_server_s(browsers: Browsers, host: str, words: str | None) -> None:
    reason = browsers.reason_against_page(host)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize("browsers", [LOCAL, OPEN])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:50051", "[::zz]", "[", "a b"])
def test_the_page_and_its_calls_are_refused_in_the_same_words(browsers: Browsers, host: str) -> None:
    reason = browsers.reason_against_page(host)
    assert reason is not None
    assert reason == browsers.reason_against("1.1", host, f"http://{host}")
    assert reason.endswith("or a name in page_hosts")


def test_errors_do_not_mention_the_page_if_it_is_off() -> None:
    assert WITHOUT.reason_against("1.1", "evil.example", None) == "host is 'evil.example': expected localhost"

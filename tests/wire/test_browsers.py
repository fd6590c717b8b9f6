"""Which web pages may call."""

from __future__ import annotations

import pytest

from service.wire.envoy.browsers import Browsers

LOCAL, OPEN = Browsers("127.0.0.1", ["https://app.example"]), Browsers("0.0.0.0", ["https://app.example"])


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
    ],
)
def test_who_may_call_may(browsers: Browsers, version: str, host: str, origin: str | None) -> None:
    assert browsers.reason_against(version, host, origin) is None


@pytest.mark.parametrize(
    ("browsers", "version", "host", "origin", "words"),
    [
        (LOCAL, "1.1", "evil.example:50051", None, "host is"),
        (LOCAL, "1.1", "evil.example:50051", "http://evil.example:50051", "host is"),
        (LOCAL, "2", "evil.example:50051", "http://evil.example:50051", "host is"),
        (LOCAL, "1.1", "localhost:50051", "http://localhost:8080", "origin"),
        (LOCAL, "1.1", "localhost:50051", "null", "origin"),
        (LOCAL, "1.1", "localhost:50051", "http://localhost:50051", "origin"),
        (LOCAL, "1.1", "", None, "host is"),
        (LOCAL, "1.1", "[", None, "host is"),
        (OPEN, "1.1", "carousel.example", "https://evil.example", "origin"),
        (OPEN, "1.1", "carousel.example", "https://[", "origin"),
        (OPEN, "1.1", "", "null", "origin"),
        (OPEN, "1.1", "evil.example:50051", "http://evil.example:50051", "origin"),  # DNS rebinding
    ],
)
def test_pages_from_elsewhere_may_not(
    browsers: Browsers, version: str, host: str, origin: str | None, words: str
) -> None:
    assert words in str(browsers.reason_against(version, host, origin))

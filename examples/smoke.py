"""Checks that a deployment answers, and that its results are bit-identical. For any deployment that serves `g2p-en`.

python -m examples.smoke 127.0.0.1:50051                          a word, and a session
python -m examples.smoke --json 127.0.0.1:50050                   a model's description, over HTTP as in a browser
python -m examples.smoke --across 127.0.0.1:50050                 sessions for 8 s, while servers may restart
python -m examples.smoke --scraped http://127.0.0.1:9090 3        whether Prometheus scrapes 3 servers

`scripts/compose-check` runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from carousel import Client

_MODEL = "g2p-en"
_WORD = "carousel"
_TOKENS = ("K", "EH", "R", "AH", "S", "EH", "L", "IY", "AH", "N")
_SECONDS = 8.0
_NUM_SESSIONS = 16


def alive(target: str) -> str:
    """Generates a word, feeds a session the same tokens, and compares. Raises AssertionError."""
    with Client(target, timeout=30.0) as client:
        tokens = [token.text for token in client.generate(_MODEL, _WORD)]
        with client.session(_MODEL, source=_WORD) as session:
            fed = [session.feed([token], top_k=1).outputs[-1].tokens[0].text for token in tokens[:-1]]
    if fed != tokens[1:]:
        raise AssertionError(f"generated {tokens}, but fed to a session they are followed by {fed}")
    return f"{_WORD}: {' '.join(tokens)}"


def json_spoken(target: str) -> str:
    """Requests the model's description over HTTP/1.1, in JSON. Raises AssertionError."""
    url, body = f"http://{target}/carousel.v1.Models/Get", json.dumps({"model": _MODEL}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        model = json.load(response)["model"]
    if model["status"] != "MODEL_STATUS_SERVING":
        raise AssertionError(f"{_MODEL}: expected MODEL_STATUS_SERVING, got {model['status']}")
    return f"{_MODEL}/{model['version']} by HTTP/1.1 and JSON: {model['description']}"


def across(target: str, is_over: Callable[[], bool] | None = None) -> str:
    """Feeds sessions token by token, then other sessions the same tokens in one message. The last logits must be
    bit-identical. Raises AssertionError.

    is_over: called before each token; the sessions end when it returns True. Without it they end after 8 s.
    """
    until = time.monotonic() + _SECONDS

    def is_late() -> bool:
        return time.monotonic() >= until

    has_enough = is_over or is_late

    def feed(client: Client, number: int) -> int:
        fed: list[str] = []
        with client.session(_MODEL, source=_WORD, durability="checkpoint") as session:
            while not (fed and has_enough()):
                fed.append(_TOKENS[(number + len(fed)) % len(_TOKENS)])
                step = session.feed(fed[-1:], logits=True)
                time.sleep(0.01)
            if session.position != len(fed):
                raise AssertionError(f"fed {len(fed)} tokens, but the session is at {session.position}")
        with client.session(_MODEL, source=_WORD) as again:
            at_once = again.feed(fed, logits=True)
        if list(step.outputs[-1].logits or ()) != list(at_once.outputs[-1].logits or (0,)):
            raise AssertionError(f"session {number}: other logits after {len(fed)} tokens")
        return len(fed)

    with Client(target) as client, ThreadPoolExecutor(_NUM_SESSIONS) as threads:
        counts = list(threads.map(lambda number: feed(client, number), range(_NUM_SESSIONS)))
    return f"{len(counts)} sessions, {sum(counts)} tokens, one by one: the same bits as at once"


def scraped(prometheus: str, count: int) -> str:
    """Checks with Prometheus that it scrapes `count` servers and that they have processed tokens. Raises
    AssertionError."""

    def ask(query: str) -> float:
        url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as response:
            result = json.load(response)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    up, tokens = ask('sum(up{job="carousel"})'), ask("sum(carousel_tokens_total)")
    if up < count or not tokens:
        raise AssertionError(f"Prometheus scrapes {up:g} servers, expected {count}; it has seen {tokens:g} tokens")
    return f"Prometheus scrapes {up:g} servers and has seen {tokens:g} tokens"


def main() -> int:
    """Runs the check of the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Check that a deployment answers, and that its results are bit-identical."
    )
    parser.add_argument("target")
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--json", action="store_true", help="by HTTP/1.1 and JSON")
    parser.add_argument("--across", action="store_true", help="sessions for 8 seconds")
    parser.add_argument("--scraped", action="store_true", help="target is Prometheus, count: of servers")
    given = parser.parse_args()
    if given.scraped:
        print(scraped(given.target, given.count))
    else:
        print((across if given.across else json_spoken if given.json else alive)(given.target))
    return 0


if __name__ == "__main__":
    sys.exit(main())

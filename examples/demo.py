"""Shows Carousel in a minute: starts the service, streams words and a sentence through it, prints a session's state and
the latencies.

./scripts/demo
"""

from __future__ import annotations

import io
import math
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from carousel import Client
from examples.local_service import LocalService, local_service
from examples.translation import translate

MODELS = Path(__file__).parent.parent / "model_repository"
MODEL = "g2p-en"
UNSEEN = {
    "elephant": "EH L AH F AH N T",
    "sequence": "S IY K W AH N S",
    "forget": "F AO R G EH T",
    "gate": "G EY T",
    "stream": "S T R IY M",
}
"""Words of the test split, on which the model was not trained, and their phonemes in the dictionary."""


def main() -> int:
    """Runs the demo. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # German has letters that some terminals cannot show
    print("Starting the service on the shipped models ...")
    with local_service(MODELS) as service:
        with Client(service.target) as client:
            print(f"It listens on {service.target} and serves {', '.join(m.model for m in client.models())}.\n")
            all_right = generate(client)
            step_by_step(client)
            translate(client)
        show_latency(service)
        show_page(service)
        print("\nStopping the service ...", end=" ", flush=True)
        code = service.stop()
        print("stopped cleanly." if code == 0 else f"it ended with code {code}.")
    return 0 if code == 0 and all_right else 1


def generate(client: Client) -> bool:
    """Prints the phonemes of each word when they arrive. Returns whether all are those of the dictionary."""
    print("Words that it was not trained on, their phonemes as they arrive, and whether the dictionary agrees:")
    all_right = True
    for word, expected in UNSEEN.items():
        print(f"  {word:<10}", end="", flush=True)
        began = time.perf_counter()
        arrivals = []
        phonemes = []
        for token in client.generate(MODEL, word):
            arrivals.append(time.perf_counter() - began)
            phonemes.append(token.text)
            print(f" {token.text}", end="", flush=True)
        is_right = " ".join(phonemes) == expected
        all_right = all_right and is_right
        padding = " " * (24 - len(" ".join(phonemes)))
        verdict = "right" if is_right else f"WRONG: {expected}"
        print(f"{padding} {verdict}; first after {1e3 * arrivals[0]:.1f} ms, last after {1e3 * arrivals[-1]:.1f} ms")
    return all_right


def step_by_step(client: Client) -> None:
    """Feeds one session token by token and prints the two most likely next tokens of each step."""
    word = "carousel"
    print(f"\nOne session for {word!r}, fed by hand; the server keeps its hidden and cell state between the messages:")
    with client.session(MODEL, source=word, top_k=2) as session:
        kept = client.model(MODEL).state_size_bytes
        step = session.first
        while step is not None and step.tokens[0].text != "</s>":
            best, second = step.tokens
            print(
                f"  position {session.position}, state of {kept} bytes: next is "
                f"{best.text} ({_percent(best.log_probability)}) or {second.text} ({_percent(second.log_probability)})"
            )
            step = session.feed(best.id, top_k=2).outputs[-1]
        info = client.sessions.get(session.id)
        print(f"  position {info.position}: the end. The server lists session {info.session_id[:8]} as {info.state}.")


def show_page(service: LocalService) -> None:
    """Prints where the page of the service is."""
    has_page = any(line["event"] == "page.served" for line in service.log)
    where = "http://localhost:50051/ while ./scripts/serve runs" if has_page else "the wire envoy has one"
    print(f"\nA page to type into: {where}.")


def show_latency(service: LocalService) -> None:
    """Prints the histogram of the latencies of the demo's steps, from the metrics that Prometheus would read."""
    print(f"\nWhat Prometheus reads: carousel_step_latency_seconds of the step graph of {MODEL}, batches of every size")
    with urllib.request.urlopen(service.metrics_url, timeout=10) as response:
        print("\n".join(histogram(response.read().decode(), MODEL)))


def histogram(metrics: str, model: str) -> list[str]:
    """Returns a line for each latency bucket of one model's steps that is not empty.

    metrics: the text that Prometheus reads. Each combination of labels is a series of its own with cumulative buckets:
    each bucket includes those below it. The counts of all series are added.
    """
    counts: Counter[tuple[float, float]] = Counter()
    series: dict[frozenset[tuple[str, str]], dict[float, int]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name != "carousel_step_latency_seconds_bucket" or labels["graph"] != "step":
                continue
            upper = float(labels.pop("le"))
            if labels["model"] == model:
                series.setdefault(frozenset(labels.items()), {})[upper] = int(sample.value)
    for buckets in series.values():
        lower, below = 0.0, 0
        for upper, cumulative in sorted(buckets.items()):
            counts[lower, upper] += cumulative - below
            lower, below = upper, cumulative
    return [
        f"  {_bounds(lower, upper)}  {count:4d} {'#' * min(60, count)}"
        for (lower, upper), count in sorted(counts.items())
        if count
    ]


def _bounds(lower: float, upper: float) -> str:
    if math.isinf(upper):
        return f"more than  {1e3 * lower:7.2f} ms"
    return f"{1e3 * lower:7.2f} to {1e3 * upper:7.2f} ms"


def _percent(log_probability: float | None) -> str:
    return "?" if log_probability is None else f"{100 * math.exp(log_probability):.0f} %"


if __name__ == "__main__":
    sys.exit(main())

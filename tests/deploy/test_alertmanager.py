"""Alertmanager accepts the deployed configuration, and an alert of a real Prometheus reaches a receiver with a valid
link."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.ports import free_port
from tests.conftest import ROOT
from tests.services import alertmanager_server, program, prometheus_server

CONFIG = (ROOT / "deploy" / "alertmanager" / "alertmanager.yml").read_text()
WITH_RECEIVERS = re.sub(r"(?m)^    # ", "    ", CONFIG)
"""The configuration as an operator uses it, with the receivers uncommented."""
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def amtool(*arguments: str) -> str:
    done = subprocess.run([program("amtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("text", [CONFIG, WITH_RECEIVERS], ids=["as deployed", "with receivers"])
def test_alertmanager_takes_the_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "alertmanager.yml"
    path.write_text(text)
    assert "SUCCESS" in amtool("check-config", str(path))


def test_the_example_is_a_receiver_of_each_severity() -> None:
    assert all(one.keys() == {"name"} for one in yaml.safe_load(CONFIG)["receivers"])
    named = {one["name"]: one["webhook_configs"] for one in yaml.safe_load(WITH_RECEIVERS)["receivers"]}
    assert named.keys() == {"page", "ticket"}


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_each_severity_has_its_receiver(severity: str) -> None:
    path = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    receiver = amtool(
        "config", "routes", "test", f"--config.file={path}", "alertname=CarouselDown", f"severity={severity}"
    )
    assert receiver.strip() == severity


def test_compose_has_the_files_that_are_named() -> None:
    (targets,) = PROMETHEUS["alerting"]["alertmanagers"][0]["static_configs"]
    assert targets == {"targets": ["alertmanager:9093"]}
    assert "127.0.0.1:9093:9093" in COMPOSE["alertmanager"]["ports"]
    assert "./deploy/alertmanager:/etc/alertmanager:ro" in COMPOSE["alertmanager"]["volumes"]
    prometheus = COMPOSE["prometheus"]
    (mount,) = [one for one in prometheus["volumes"] if one.startswith("./docs:")]
    assert f"--web.user-assets={mount.split(':')[1]}" in prometheus["command"]
    base = PROMETHEUS["global"]["external_labels"]["runbooks"]
    (external,) = [one.partition("=")[2] for one in prometheus["command"] if one.startswith("--web.external-url=")]
    assert base == f"{external}/user/operations.md"


@contextmanager
def webhook() -> Iterator[tuple[str, queue.Queue[tuple[str, dict[str, Any]]]]]:
    """Runs a receiver of alerts. Gives its URL, and a queue of the path and the message of each alert."""
    received: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def prometheus_config(folder: Path, url: str, alertmanager: str, target: str) -> str:
    """Returns the deployed configuration with one target and without waiting times."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["for"] = "0s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    labels = PROMETHEUS["global"]["external_labels"]
    runbooks = labels["runbooks"].replace("http://localhost:9090", url)
    assert runbooks.startswith(url)
    config = {
        **PROMETHEUS,
        "global": {
            "scrape_interval": "200ms",
            "evaluation_interval": "200ms",
            "external_labels": {"runbooks": runbooks},
        },
        "scrape_configs": [{"job_name": "carousel", "static_configs": [{"targets": [target]}]}],
    }
    host = alertmanager.removeprefix("http://")
    config["alerting"] = {**PROMETHEUS["alerting"], "alertmanagers": [{"static_configs": [{"targets": [host]}]}]}
    return yaml.safe_dump(config)


def test_an_alert_reaches_the_receiver_with_a_link_to_what_to_do(tmp_path: Path) -> None:
    """The target does not answer, so CarouselDown fires, whose severity is `page`."""
    port = free_port()
    target = f"127.0.0.1:{free_port()}"
    with webhook() as (url, received):
        config = WITH_RECEIVERS.replace("http://localhost:8080", url).replace("group_wait: 10s", "group_wait: 0s")
        assert url in config
        with alertmanager_server(tmp_path, config) as alertmanager:
            ours = prometheus_config(tmp_path, f"http://127.0.0.1:{port}", alertmanager, target)
            with prometheus_server(tmp_path, ours, f"--web.user-assets={ROOT / 'docs'}", port=port):
                path, message = received.get(timeout=60)
                (alert,) = message["alerts"]
                link = alert["annotations"]["runbook_url"]
                with urllib.request.urlopen(link, timeout=10) as answer:
                    shown = answer.read().decode()
    assert (path, message["receiver"], message["status"]) == ("/page", "page", "firing")
    assert alert["labels"] == {
        "alertname": "CarouselDown",
        "instance": target,
        "job": "carousel",
        "severity": "page",
    }
    assert alert["annotations"]["summary"] == f"{target} does not answer Prometheus"
    _, _, anchor = link.partition("#")
    assert anchor in [heading.lower() for heading in re.findall(r"(?m)^### (\w+)$", shown)]

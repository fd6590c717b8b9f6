"""The dashboards are those that the code generates, and they show data of a real Prometheus and a real service."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.__main__ import texts
from deploy.dashboards.evaluate import QueryError, Series, expand, legend, query_range
from examples.traffic import run
from service.telemetry.metrics import Metrics
from tests.conftest import ROOT
from tests.services import local_service, prometheus_server

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
SECONDS = 7.0
VARIABLES = {"instance": ".*", "model": ".*", "version": ".*", "__rate_interval": "5s"}
MAY_BE_EMPTY = {"Rejected requests by reason", "Store error rate", "TLS certificate lifetime"}
"""Panels that may have no data."""


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]
IDS = [f"{name}: {panel['title']}" for name, panel in PANELS]


def prometheus_config(targets: list[str]) -> str:
    """Returns the deployed configuration with other targets and shorter intervals."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    del config["alerting"]
    config["rule_files"] = [str(ROOT / "deploy" / "prometheus" / "rules.yml")]
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "carousel"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": targets}]
    config["scrape_configs"] = [job]
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def prometheus(g2p_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """The URL of a Prometheus that has scraped a service under load, and the end of the load in Unix seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    flags = {"store": "lmdb", "data-folder": folder / "data", "max-slots": 12, "checkpoint-interval-s": 0.2}
    with local_service(g2p_repository, flags) as service:
        target = service.metrics_url.removeprefix("http://").removesuffix("/metrics")
        with prometheus_server(folder, prometheus_config([target])) as url:
            assert asyncio.run(run(service.target, SECONDS)) > 100
            yield url, time.time()


def shown(prometheus: tuple[str, float], target: dict[str, Any]) -> list[Series]:
    url, end = prometheus
    return query_range(url, expand(target["expr"], VARIABLES), end - SECONDS + 2, end, 1.0)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_every_query_of_a_panel_returns_its_data(
    prometheus: tuple[str, float], name: str, panel: dict[str, Any]
) -> None:
    """Each query succeeds and has data where it must, and each legend's labels exist."""
    found = [(target, shown(prometheus, target)) for target in panel["targets"]]
    for target, lines in found:
        legends = [legend(target["legendFormat"], line.labels) for line in lines]
        assert len(set(legends)) == len(legends), "no two lines have one legend"
        assert "" not in legends
    values = [value for _, lines in found for line in lines for _, value in line.points if not math.isnan(value)]
    assert values or panel["title"] in MAY_BE_EMPTY
    assert min(values, default=0) >= 0
    if panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
        assert max(values) <= 1


def test_every_metric_is_in_a_panel_or_a_rule(prometheus: tuple[str, float]) -> None:
    """Every metric is in a panel or a rule, except those named here, and each metric that they name exists."""
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    asked = " ".join(target["expr"] for _, panel in PANELS for target in panel["targets"]) + rules
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"carousel_\w+", asked)}
    known = {family.name + ("_total" if family.type == "counter" else "") for family in Metrics().registry.collect()}
    ours = {name for name in known if name.startswith("carousel_")}
    assert used <= ours
    assert ours - used == {"carousel_build_info", "carousel_call_duration_seconds", "carousel_store_failures_total"}


def test_a_query_that_is_wrong_is_found(prometheus: tuple[str, float]) -> None:
    with pytest.raises(QueryError, match="parse error"):
        query_range(prometheus[0], "sum(", 0, 1, 1)
    with pytest.raises(KeyError):
        expand("up{job=~'$job'}", VARIABLES)
    with pytest.raises(KeyError):
        legend("{{model}}", {})


def test_the_objectives_are_computed(prometheus: tuple[str, float]) -> None:
    url, end = prometheus
    (errors,) = query_range(url, "carousel:request_errors:ratio_rate5m", end, end, 1)
    assert errors.points[0][1] == 0, "what callers do wrong is no error of the server"
    (slow,) = query_range(url, "carousel:slow_feeds:ratio_rate5m", end, end, 1)
    assert 0 <= slow.points[0][1] < 0.5


def test_the_files_are_what_the_code_makes() -> None:
    """`./scripts/generate` writes them."""
    assert {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()} == texts()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_ids_are_unique_and_panels_do_not_overlap(name: str) -> None:
    every = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)

    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        return {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}

    for one, other in combinations(every, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_panel_has_unit_description_and_empty_state(name: str, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert defaults["noValue"]
    assert panel["description"].endswith(".")
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_title_says_by_a_standard_word_what_is_measured(name: str, panel: dict[str, Any]) -> None:
    words = {"percentunit": r"ratio|utilization|share", "s": r"latency|time|lag|delay", "reqps": r"rate|requests"}
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert re.search(words.get(unit, ""), panel["title"], re.IGNORECASE)
    assert ("distribution" in panel["title"]) is (panel["type"] == "heatmap")


@pytest.mark.parametrize(
    ("title", "words"),
    [("Servers up", ["down"]), ("Servers by version", ["not served"]), ("Store state", ["down", "up"])],
)
def test_a_state_is_shown_as_a_word(title: str, words: list[str]) -> None:
    (panel,) = [panel for _, panel in PANELS if panel["title"] == title]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert [mapping["options"][str(value)]["text"] for value in range(len(words))] == words
    assert mapping["options"]["0"]["color"] == "red"


def test_runbooks_name_existing_panels() -> None:
    runbooks = (ROOT / "docs" / "operations.md").read_text().partition("## When it alerts")[2].partition("\n## ")[0]
    named = {" ".join(one.rpartition("/")[2].split()) for one in re.findall(r"(?<!\*)\*([^*`]+)\*(?!\*)", runbooks)}
    known = {panel["title"].removesuffix(" (p95)") for _, panel in PANELS} | {"Service", "Models", "Sessions"}
    assert named
    assert named <= known


def test_every_source_is_the_one_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (uid,) = [source["uid"] for source in provisioned["datasources"]]
    for _, panel in PANELS:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert [source["uid"] for source in sources] == [uid] * len(sources)
    for dashboard in DASHBOARDS.values():
        assert {variable["datasource"]["uid"] for variable in dashboard["templating"]["list"]} == {uid}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


def test_the_folders_that_are_provisioned_are_those_that_compose_mounts() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "carousel.yml").read_text())["providers"][0]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    for path in (GRAFANA / "dashboards", GRAFANA / "provisioning"):
        assert Path(path).is_dir()

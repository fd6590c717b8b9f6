"""The alerts are valid, fire exactly when they must, and each has a runbook."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from service.telemetry.metrics import SECONDS, Metrics
from tests.conftest import ROOT
from tests.services import program

FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert "rules found" in promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(FOLDER / "rules.yml"))


def test_alerts_fire_when_they_must_and_not_when_they_must_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(FOLDER / "rules_test.yml"))


def test_each_alert_is_tested() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test.get("alert_rule_test", []) if one["exp_alerts"]}
    assert fired == ALERTS


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_each_alert_has_its_runbook(alert: str) -> None:
    assert f"\n### {alert}\n" in OPERATIONS
    for rule in RULES:
        if rule.get("alert") == alert:
            assert rule["annotations"]["runbook_url"] == f"{{{{ $externalLabels.runbooks }}}}#{alert.lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")


def test_rules_use_existing_metrics() -> None:
    known = {sample for family in Metrics().registry.collect() for sample in _samples(family.name, family.type)}
    asked = set(re.findall(r"\bcarousel_\w+", " ".join(rule["expr"] for rule in RULES)))
    assert asked
    assert asked <= known


def test_the_bound_of_the_latency_objective_is_a_bucket() -> None:
    """Otherwise the objective would have no data."""
    bounds = {float(bound) for bound in re.findall(r'le="([0-9.]+)"', " ".join(rule["expr"] for rule in RULES))}
    assert bounds == {0.1}
    assert bounds <= set(SECONDS)


def _samples(name: str, kind: str) -> set[str]:
    if kind == "counter":
        return {f"{name}_total"}
    return {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}

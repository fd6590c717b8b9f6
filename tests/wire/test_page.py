"""The page: its files, who may load them, and which headers browsers get."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any

import pytest

from examples.local_envoy import local_envoy
from examples.local_service import LocalService
from service.wire.envoy.page import FOLDER, Page
from tests.services import local_service, program


def load(target: str, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Returns the status, the headers and the body of a response."""
    connection = http.client.HTTPConnection(target, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def post(target: str, path: str, **headers: str) -> int:
    """Makes a call without fields, in JSON. Returns the HTTP status."""
    connection = http.client.HTTPConnection(target, timeout=10)
    try:
        connection.request("POST", path, b"{}", {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def service(tiny_repository: Path) -> Any:
    with local_service(tiny_repository, {"wire": "envoy"}) as running:
        yield running


def test_each_file_is_given_as_it_is(service: LocalService) -> None:
    names = {path.name for path in FOLDER.iterdir() if path.suffix in {".html", ".js", ".css", ".txt"}}
    assert {"index.html", "page.js", "worklet.js", "page.css", "THIRD_PARTY.txt"} == names
    for name in names:
        status, headers, body = load(service.target, "/" if name == "index.html" else f"/{name}")
        assert (status, body) == (200, (FOLDER / name).read_bytes())
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-length"] == str(len(body))
        assert "transfer-encoding" not in headers
        again = load(service.target, "/" if name == "index.html" else f"/{name}", if_none_match=headers["etag"])
        assert (again[0], again[2]) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/index.html", "/page.js/", "/../page.js", "/%70age.js", "//page.js", "/service/page/page.js", "/page.py"]
)
def test_no_other_path_leads_to_a_file(service: LocalService, path: str) -> None:
    assert load(service.target, path)[0] == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/nope"])
def test_every_answer_tells_its_length(service: LocalService, path: str) -> None:
    status, headers, body = load(service.target, path)
    assert headers["content-length"] == str(len(body))
    head = load(service.target, path, method="HEAD")
    assert (head[0], head[1]["content-length"], head[2]) == (status, str(len(body)), b"")
    assert load(service.target, "/", host="evil.example")[1]["content-length"]


def test_the_page_is_served_by_get_and_head_only(service: LocalService) -> None:
    assert load(service.target, "/page.js", method="HEAD")[0::2] == (200, b"")
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert load(service.target, "/", method=method)[0] == 404


def test_the_page_refers_only_to_its_own_files(service: LocalService) -> None:
    html = load(service.target, "/")[2].decode()
    names = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", html)
    assert "page.js" in " ".join(names)
    for name in names:
        assert "//" not in name
        assert name.startswith("data:") or load(service.target, "/" + name.removeprefix("./").lstrip("/"))[0] == 200


def test_the_page_may_call_and_pages_of_other_origins_may_not(service: LocalService) -> None:
    path, own = "/carousel.v1.Models/List", f"http://{service.target}"
    assert post(service.target, path, origin=own) == 200
    assert post(service.target, path, origin="http://evil.example") == 403
    evil = {"host": "evil.example", "origin": "http://evil.example"}
    assert post(service.target, path, **evil) == 403
    assert load(service.target, "/", host="evil.example")[0] == 403


def test_the_page_needs_no_token_and_can_be_turned_off(tiny_repository: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[principals.app]\ntoken_sha256 = ["' + "0" * 64 + '"]\n')
    flags = {"wire": "envoy", "host": "0.0.0.0", "tokens-file": tokens, "page-hosts": '["carousel.example"]'}
    with local_service(tiny_repository, flags) as open_service:
        target = open_service.target
        assert load(target, "/")[0] == 200
        assert load(target, "/", host="carousel.example")[0] == 200
        status, _, body = load(target, "/", host="other.example")
        assert (status, body) == (
            403,
            b"host is 'other.example': expected localhost or an address, or a name in page_hosts\n",
        )
        assert post(target, "/carousel.v1.Models/List", origin=f"http://{target}") == 401
    with local_service(tiny_repository, {"wire": "envoy", "page": False}) as without:
        assert load(without.target, "/")[0] == 404
        assert post(without.target, "/carousel.v1.Models/List", origin=f"http://{without.target}") == 403


def test_the_page_is_served_through_the_front_proxy(
    tiny_repository: Path, tmp_path: Path, service: LocalService
) -> None:
    program("envoy")
    with local_envoy([int(service.target.rpartition(":")[2])], tmp_path) as front:
        port = front.target.rpartition(":")[2]
        status, headers, body = load(f"localhost:{port}", "/")
        assert (status, body) == (200, (FOLDER / "index.html").read_bytes())
        assert "default-src 'none'" in headers["content-security-policy"]
        assert load(f"localhost:{port}", "/page.js")[0] == 200
        assert load(f"localhost:{port}", "/index.html")[0] == 415


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Page(tmp_path / "none")

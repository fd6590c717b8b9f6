"""The committed bundle is built from the current sources, is small, and loads nothing from other hosts."""

from __future__ import annotations

import hashlib
import json
import re

from tests.conftest import ROOT

PAGE = ROOT / "service" / "page"
FILES = {"index.html", "page.js", "worklet.js", "page.css", "THIRD_PARTY.txt"}
MAX_BYTES = 300_000
NAMESPACES = {"www.w3.org", "www.apache.org"}


def test_the_bundle_is_of_these_sources() -> None:
    """`scripts/page` writes the digest of the sources into the bundle."""
    names = ["page/build.mjs", "page/package-lock.json"]
    for folder in ("page/src", "proto/carousel/v1"):
        names += [f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    stamp = re.match(r"/\* Made by scripts/page of (\w+)", (PAGE / "page.js").read_text())
    assert stamp is not None
    assert stamp[1] == digest.hexdigest(), "run ./scripts/page"


def test_the_bundle_is_small_and_flat() -> None:
    assert {path.name for path in PAGE.iterdir()} == FILES
    assert sum(path.stat().st_size for path in PAGE.iterdir()) <= MAX_BYTES


def test_nothing_is_loaded_from_elsewhere() -> None:
    for name in ("index.html", "page.css"):
        text = (PAGE / name).read_text()
        assert set(re.findall(r"https?://([\w.-]+)", text)) <= NAMESPACES
    html = (PAGE / "index.html").read_text()
    assert " style=" not in html
    assert re.findall(r"<script[^>]*>", html) == ['<script src="page.js" defer>']
    assert re.findall(r"url\((?!data:)", (PAGE / "page.css").read_text()) == []


def test_the_notices_name_every_package_that_is_in_it() -> None:
    notices = (PAGE / "THIRD_PARTY.txt").read_text()
    lock = json.loads((ROOT / "page" / "package-lock.json").read_text())["packages"]
    for name in json.loads((ROOT / "page" / "package.json").read_text())["dependencies"]:
        assert f"\n{name} {lock[f'node_modules/{name}']['version']}\n" in notices
    for words in ("Apache License", "Redistribution and use in source and binary forms", "MIT License"):
        assert words in notices

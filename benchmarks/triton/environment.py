"""The virtual environment of Triton, whose wheel needs other versions of NumPy and protobuf than Carousel.

`python -m benchmarks.triton.environment` makes it, and so does `python -m benchmarks peers`. That takes about 15
seconds and 330 MB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "peers" / "triton"
REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4", f"onnxruntime=={version('onnxruntime')}")
"""The packages, installed without their dependencies: of the first, only the server's program and its Python backend
are used. ONNX Runtime has the version that Carousel runs with."""
TRITON_VERSION = "2.51.0"
"""The version of the program in that wheel."""
_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Environment:
    """The paths of the environment."""

    folder: Path = FOLDER

    @property
    def packages(self) -> Path:
        """The folder that Python imports from."""
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))

    @property
    def program(self) -> Path:
        """The server's program."""
        return self._server / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The server's folder of backends."""
        return self._server / "backends"

    @property
    def _server(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    def make(self) -> None:
        """Makes the environment, unless it exists with the same packages. Raises RuntimeError when it cannot be
        made."""
        made_of = self.folder / "made-of.txt"
        python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
        wanted = "\n".join((f"python=={python_version}", *REQUIREMENTS))
        if made_of.exists() and made_of.read_text() == wanted:
            return
        print(f"making {self.folder}: {', '.join(REQUIREMENTS)}", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(self.folder))
        _run(str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS)
        stub = self._server / "python_backend_stubs" / python_version / "triton_python_backend_stub"
        if not stub.exists():
            raise RuntimeError(f"{REQUIREMENTS[0]} has no backend for Python {python_version}: {stub} is missing")
        shutil.copy(stub, self.backends / "python")
        made_of.write_text(wanted)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    Environment().make()

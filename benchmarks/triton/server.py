"""Starts Triton with one model: a bundle's step graph behind the sequence batcher."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

from benchmarks.restarts import Started
from benchmarks.triton import messages
from benchmarks.triton.environment import Environment
from examples.ports import free_port, wait_for_port

MAX_SEQUENCES = 64
"""The largest batch, and so the largest number of sequences."""
MAX_DELAY_US = 200
"""How long an incomplete batch waits. docs/performance.md lists the values that were tried."""
JEMALLOC = find_library("jemalloc") or ""
"""The memory allocator that makes Triton faster and less likely to crash; empty when it is not installed."""
_MODEL = Path(__file__).with_name("model.py")
_IDLE_US = 600_000_000
_STOP_TIMEOUT_S = 15.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where the Python backend creates its shared memory

CONFIGURATION = """\
backend: "python"
max_batch_size: {max_sequences}
input [{{ name: "{input}" data_type: TYPE_INT64 dims: [1] }}]
output [{{ name: "{output}" data_type: TYPE_INT64 dims: [1] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
parameters {{ key: "bundle" value {{ string_value: "{bundle}" }} }}
sequence_batching {{
  max_sequence_idle_microseconds: {idle_us}
  oldest {{ max_candidate_sequences: {max_sequences} max_queue_delay_microseconds: {delay_us} }}
}}
"""


def write_repository(repository: Path, name: str, bundle: Path) -> None:
    """Writes a model repository with one model."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(_MODEL, version / "model.py")
    configuration = CONFIGURATION.format(
        max_sequences=MAX_SEQUENCES,
        input=messages.INPUT,
        output=messages.OUTPUT,
        bundle=bundle.resolve(),
        idle_us=_IDLE_US,
        delay_us=MAX_DELAY_US,
    )
    (repository / name / "config.pbtxt").write_text(configuration)


@contextmanager
def triton(environment: Environment, name: str, bundle: Path, preload: str = "") -> Iterator[Started]:
    """Starts Triton. preload: path of a library, or empty. Raises RuntimeError with the log when Triton does not
    start."""
    port = free_port()
    prefix = f"carousel-peers-{port}-"
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(suffix=".log") as log:
        write_repository(Path(folder), name, bundle)
        command = [
            str(environment.program),
            f"--model-repository={folder}",
            f"--backend-directory={environment.backends}",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
        ]
        process = subprocess.Popen(
            command, env=_variables(environment, preload), stdout=log, stderr=log, start_new_session=True
        )
        try:
            try:
                wait_for_port(port, process)
            except RuntimeError as error:
                raise RuntimeError(f"{error}:\n{Path(log.name).read_text()[-2000:]}") from error
            yield Started(f"127.0.0.1:{port}", process)
        finally:
            _stop(process)
            for left in _SHARED_MEMORY.glob(f"{prefix}*"):
                left.unlink(missing_ok=True)


def _variables(environment: Environment, preload: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{environment.folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(environment.packages),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),  # this folder may contain libpython
        "LD_PRELOAD": preload,
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and the backend's process, which can outlive a server that crashed."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""The native load generator: builds `native/replay.cc` on first use, and replays prepared messages with it.

The binary is cached outside the repository, in `$XDG_CACHE_HOME/carousel` (default `~/.cache/carousel`). Its name
contains the digest of its sources and of the libraries' flags.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from google.protobuf.message import DecodeError

from benchmarks.traffic import METHOD, Load, Sequence, Traffic
from carousel.v1 import inference_pb2 as pb

SOURCES = Path(__file__).parent / "native"
SETUP_TIMEOUT_S = 120.0
_BUILD_TIMEOUT_S = 300.0
_EXTRA_S = 30.0
"""How much longer than the requested time the generator may run."""


class NotAvailableError(Exception):
    """The native generator cannot be built on this machine; the text is the reason."""


def cache_folder() -> Path:
    """Returns the folder of built generators."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carousel"


@cache
def generator() -> Path:
    """Returns the generator's path, and builds it if needed. Raises NotAvailableError when the compiler or a library is
    missing or the build fails."""
    compiler, config = shutil.which("g++"), shutil.which("pkg-config")
    if compiler is None or config is None:
        raise NotAvailableError("no g++" if compiler is None else "no pkg-config")
    found = subprocess.run([config, "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise NotAvailableError("no libgrpc++-dev")
    digest = hashlib.sha256(found.stdout.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    program = cache_folder() / f"replay-{digest.hexdigest()[:16]}"
    if not program.exists():
        _build(compiler, found.stdout.split(), program)
    return program


def why_not() -> str:
    """Returns why the native generator is not available; empty when it is available."""
    try:
        generator()
    except NotAvailableError as error:
        return str(error)
    return ""


def replay(target: str, traffic: Traffic, load: Load, server_pid: int | None = None) -> dict[str, float]:
    """Replays the traffic against a server. Returns the figures that the generator prints: see `native/figures.h`.

    server_pid: a process whose CPU time is measured too. Raises RuntimeError when the server refused a request. In an
    open loop, which may exceed the server's capacity, refused requests only count in `errors`.
    """
    with tempfile.NamedTemporaryFile(suffix=".replay") as file:
        file.write(message_file(traffic.sequences))
        file.flush()
        flags = {
            "target": target,
            "messages": file.name,
            "method": traffic.method,
            "seconds": load.seconds,
            "warmup": load.warmup_s,
            "setup-timeout": SETUP_TIMEOUT_S,
            "in-flight": traffic.in_flight,
            "steps-per-answer": traffic.steps_per_answer,
            "end-field": traffic.end_field,
            "count-field": traffic.count_field,
            "error-fields": ",".join(traffic.error_fields),
            "turn": traffic.turn_s,
            "rate": traffic.rate,
            "server-pid": server_pid,
        }
        command = [str(generator())]
        for name, value in flags.items():
            if value:  # the generator has a default for each flag
                command += [f"--{name}", str(value)]
        if not load.warmup_s:
            command += ["--warmup", "0"]
        timeout_s = SETUP_TIMEOUT_S + load.warmup_s + load.seconds + _EXTRA_S
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        reason, refused, answer = done.stderr.strip().partition("was refused: ")
        raise RuntimeError(
            f"the native load generator failed: {reason}{refused}{_text(answer, traffic) if refused else ''}"
        )
    seen = json.loads(done.stdout)
    if seen["errors"] and not traffic.rate:
        raise RuntimeError(
            f"{seen['errors']:,} requests failed; the first answer: {_text(seen['first_error'], traffic)}"
        )
    if not seen["requests"] and not traffic.count_field:
        raise RuntimeError(f"no request was answered in {seen['seconds']:g} s")
    return {name: value for name, value in seen.items() if isinstance(value, int | float)}


def message_file(sequences: list[Sequence]) -> bytes:
    """Returns the generator's message file: see `read_sequences` in `native/options.h`."""
    parts = [b"replay01", struct.pack("<I", len(sequences))]
    for sequence in sequences:
        parts.append(struct.pack("<II", sequence.channel, sequence.is_counted))
        for messages in (sequence.first, sequence.steps):
            parts.append(struct.pack("<I", len(messages)))
            for message in messages:
                parts += [struct.pack("<I", len(message)), message]
    return b"".join(parts)


def _text(answer: str, traffic: Traffic) -> str:
    try:
        data = bytes.fromhex(answer)
        return str(pb.StreamResponse.FromString(data)) if traffic.method == METHOD else data.decode(errors="replace")
    except (ValueError, DecodeError):  # the generator truncated the bytes
        return answer[:400]


def _build(compiler: str, libraries: list[str], program: Path) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        built = Path(folder) / "replay"
        command = [compiler, "-O2", "-std=c++17", "-o", str(built), str(SOURCES / "replay.cc"), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S)
        if done.returncode:
            raise NotAvailableError(f"g++ failed: {done.stderr[:2000]}")
        built.replace(program)  # atomic, so that several processes can build it at the same time

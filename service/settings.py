"""Every knob of the server, in one place: a flag, an environment variable `CAROUSEL_*`, a default and a reason each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.engine.limits import EngineLimits
from service.engine.runner import ROW_BUCKETS
from service.repository.runtime import Provider, RuntimeOptions, Runtimes
from service.sessions.limits import SessionLimits

_OF_KUBERNETES = re.compile(r"CAROUSEL_(SERVICE_|PORT_\d)")
"""What Kubernetes sets for a service of that name."""

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Serves recurrent models: sessions that keep their hidden and cell state, over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix="CAROUSEL_",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    models: Path = Path("model_repository")
    """Folder of the bundles, `<model>/<version>/`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all."""
    port: Port = 50051
    """Port of the gRPC services; 0 takes a free one."""
    metrics_port: Port = 9100
    """Port of `/metrics` for Prometheus; 0 takes a free one."""
    check: bool = False
    """Check the settings and every bundle, print what was found and exit: 0 when all can be served."""

    log_format: Literal["text", "json"] = "text"
    """Form of the log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged; debug tells of every session."""

    max_sessions: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Sessions open at once. A slot takes memory only once a session has used it."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a request after which a session is closed and its stream told."""
    max_in_flight: Annotated[int, Field(ge=1)] = 64
    """Requests of one session that may wait for their answers."""
    max_feed_tokens: Annotated[int, Field(ge=1)] = 131_072
    """Tokens in one feed."""
    max_generate_tokens: Annotated[int, Field(ge=1)] = 65_536
    """Tokens in one generation."""
    max_forks: Annotated[int, Field(ge=1, le=ROW_BUCKETS[-1])] = 64
    """Beams of one search, and targets of one score."""
    generation_window: Annotated[int, Field(ge=1)] = 256
    """Tokens that a generation may be ahead of what has been written to its client."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4 * 1024 * 1024
    """Size of one message, either way."""
    num_tombstones: Annotated[int, Field(ge=0)] = 10_000
    """Closed sessions whose end is remembered, so that who comes back is told why."""

    max_waiting: Annotated[int, Field(ge=1)] = 16_384
    """Requests of one model that may wait for their answers."""
    num_forks: Annotated[int, Field(ge=1)] = 1024
    """Beams and targets of one model at once, each of which takes the memory of a session."""
    max_batch_rows: Annotated[int, Field(ge=1, le=ROW_BUCKETS[-1])] = 256
    """Sessions advanced by one run of a graph."""
    max_batch_tokens: Annotated[int, Field(ge=1)] = 256
    """Sessions times tokens of one run: bounds how long a batch can take."""
    max_chunk_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of one session in one run: a longer feed is cut, and others' steps go on between."""
    inline_s: Annotated[float, Field(ge=0)] = 0.0005
    """Seconds that a batch may cost to run on the event loop; what costs more runs on the model's thread. 0: all do."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """ONNX Runtime's threads inside one operator, for each model."""
    allow_spinning: bool = False
    """Let ONNX Runtime's threads keep their cores busy while they wait for work."""
    provider: Provider = "cpu"
    """What runs the graphs; cuda needs an onnxruntime built for it."""
    model_runtimes: dict[str, RuntimeOptions] = {}
    """num_threads, allow_spinning and provider of single models, as JSON: {"g2p-en": {"num_threads": 2}}."""

    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds that running generations get to finish after SIGTERM."""

    @property
    def runtimes(self) -> Runtimes:
        """How each model's graphs are run."""
        default = RuntimeOptions(
            num_threads=self.num_threads, allow_spinning=self.allow_spinning, provider=self.provider
        )
        return Runtimes(default, self.model_runtimes)

    @property
    def engine_limits(self) -> EngineLimits:
        """What each engine is allowed."""
        return EngineLimits(
            num_slots=self.max_sessions,
            num_forks=max(self.num_forks, self.max_forks),
            max_waiting=self.max_waiting,
            max_batch_rows=self.max_batch_rows,
            max_batch_tokens=self.max_batch_tokens,
            max_chunk_tokens=self.max_chunk_tokens,
            inline_s=self.inline_s,
        )

    @property
    def session_limits(self) -> SessionLimits:
        """What sessions are allowed."""
        return SessionLimits(
            max_sessions=self.max_sessions,
            idle_timeout_s=self.idle_timeout_s,
            max_feed_tokens=self.max_feed_tokens,
            max_generate_tokens=self.max_generate_tokens,
            max_in_flight=self.max_in_flight,
            max_forks=self.max_forks,
            generation_window=self.generation_window,
            max_answer_bytes=self.max_message_bytes,
            num_tombstones=self.num_tombstones,
        )


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Environment variables that look like settings and are none, each with the setting that is spelt most like it."""
    prefix = Settings.model_config["env_prefix"]
    names = {name.upper() for name in Settings.model_fields}
    told = []
    for variable in sorted(environ):
        name = variable.upper().removeprefix(prefix)
        if name != variable.upper() and name not in names and not _OF_KUBERNETES.match(variable):
            nearest = get_close_matches(name, names, 1)
            told.append((variable, f"{prefix}{nearest[0]}" if nearest else None))
    return told

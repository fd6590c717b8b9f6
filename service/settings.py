"""Every knob of the server, in one place: a flag, an environment variable `CAROUSEL_*`, a default and a reason each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.engine.limits import EngineLimits
from service.engine.rows import ROW_BUCKETS
from service.hosts import checked_host, checked_origin, checked_without_user
from service.redis_url import DEFAULT as DEFAULT_REDIS_URL
from service.redis_url import CheckedRedisUrl, RedisUrl
from service.repository.runtime import Provider, RuntimeOptions, Runtimes
from service.sessions.persistence import Durability, PolicyLimits, SessionLimits

_OF_THE_CLIENT = {"TARGET", "TOKEN"}
"""What the command `carousel` reads."""
_OF_KUBERNETES = re.compile(r"CAROUSEL_(SERVICE_|PORT_\d)")
"""What Kubernetes sets for a service of that name."""

_FRAMING_BYTES = 512
"""The most that a response has beside its answer: ids of a request and a session, positions, and what frames fields."""

_EXAMPLES = Path(__file__).parent.parent / "model_repository"
"""All models of a checkout; in an installed server the smallest of them."""

Port = Annotated[int, Field(ge=0, le=65535)]
PageHost = Annotated[str, AfterValidator(checked_host)]
Origin = Annotated[str, AfterValidator(checked_origin)]


class Settings(BaseSettings):
    """Serves recurrent models: sessions that keep their hidden and cell state, over gRPC.

    Commands, which come first and do something else; each tells of itself with --help:
      health      ask a server on this machine whether it serves
      token NAME  make a token for a principal
      --version   tell the version
    """

    model_config = SettingsConfigDict(
        env_prefix="CAROUSEL_",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        cli_exit_on_error=False,
        use_attribute_docstrings=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    models: Path = Path("model_repository")
    """Folder of the bundles, `<model>/<version>/`."""
    example: bool = False
    """Serve the example models that come with the server; goes with no `models`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all."""
    port: Port = 50051
    """Port of the gRPC services; 0 takes a free one."""
    metrics_port: Port = 9100
    """Port of `/metrics` for Prometheus; 0 takes a free one."""
    check: bool = False
    """Check all that a start needs, and every bundle, print what was found and exit: 0 when the server would start
    and serve every bundle."""

    check_memory_mib: Annotated[int, Field(ge=256)] = 2048
    """MiB of memory that the graphs of one version may take when they are tried in a process of their own: by `check`,
    and before a server that runs loads a new version."""
    check_time_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that they may take then."""

    wire: Literal["auto", "grpcio", "envoy"] = "auto"
    """What carries the calls: gRPC's own library, or Envoy with the server inside, which is faster and speaks gRPC-Web,
    Connect and JSON too. auto: Envoy where the extra `envoy` and a shared libpython are installed, on Linux."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages that may call, as JSON: ["https://app.example"]. Needs the wire `envoy`."""
    page: bool = True
    """Serve a page to type into at `/`, on the wire `envoy`."""
    page_hosts: tuple[PageHost, ...] = ()
    """Names and addresses of this server under which the page may be opened, besides localhost, as JSON:
    ["carousel.example"]. A server that others can reach has its page under every address."""

    log_format: Literal["text", "json"] = "text"
    """Form of the log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged; debug tells of every session."""
    access_log: Literal["off", "errors", "all"] = "errors"
    """Calls that have a line in the log, `call.ended`, when they end, whatever log_level is: none, those that failed or
    in which a request failed, or all."""

    reflection: bool = True
    """Tell what services there are to who asks by gRPC's reflection."""
    metrics: bool = True
    """Serve `/metrics`."""
    health_port: Port | None = None
    """Another port that serves gRPC's health alone, in plain text and for everybody: for probes, when the services want
    TLS."""
    tls_cert_file: Path | None = None
    """PEM file of the server's certificate and those that vouch for it; with it, clients must use TLS. It is read again
    when it changes."""
    tls_key_file: Path | None = None
    """PEM file of its private key."""
    tls_client_ca_file: Path | None = None
    """PEM file of the authorities one of which must vouch for a client's certificate (mutual TLS). The certificate may
    name a principal: see tokens_file."""
    tokens_file: Path | None = None
    """TOML file of principals, the hashes of their tokens, see `python -m service token`, and the names of their
    certificates, which need tls_client_ca_file; with it, every call must come with one or the other. It is read again
    when it changes. Without it, who reaches the server may do everything."""
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 16 * 1024
    """Size of one call's metadata."""

    otlp_endpoint: Annotated[str, AfterValidator(checked_without_user)] = ""
    """Where traces are sent by OTLP over gRPC, such as `http://collector:4317`; empty: there are none. Needs the extra
    `tracing`."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How many of the calls are traced that come without a trace of their own; 1: all."""

    max_sessions: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Sessions open at once. A slot takes memory only once a session has used it."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a request after which a session is closed and its stream told."""
    max_age_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds from when a session is opened until it is closed and its record removed, however often it is used; its
    snapshots and forks count from the same moment. 0: no limit. Servers that share a store need the same."""
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
    max_calls: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Calls in progress at once, of which each stream is one; more are refused with a retry delay."""
    num_tombstones: Annotated[int, Field(ge=0)] = 10_000
    """Closed sessions whose end is remembered, so that who comes back is told why."""

    max_waiting: Annotated[int, Field(ge=1)] = 16_384
    """Requests of one model that may wait for their answers."""
    num_forks: Annotated[int, Field(ge=1)] = 1024
    """Beams and targets of one variant of a model at once, each of which takes the memory of a session. At least
    max_forks."""
    max_batch_rows: Annotated[int, Field(ge=1, le=ROW_BUCKETS[-1])] = 256
    """Sessions advanced by one run of a graph."""
    max_batch_tokens: Annotated[int, Field(ge=0)] = 0
    """Sessions times tokens of one run: bounds how long a batch can take. 0: as many as take about 4 ms, measured when
    a model is loaded, 256 to 2048."""
    max_chunk_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of one session in one run: a longer feed is cut, and others' steps go on between."""
    inline_s: Annotated[float, Field(ge=0)] = 0.002
    """Seconds that a batch may cost to run on the event loop; what costs more runs on the model's thread. 0: all do."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """ONNX Runtime's threads inside one operator, for each model."""
    allow_spinning: bool = False
    """Let ONNX Runtime's threads keep their cores busy while they wait for work."""
    provider: Provider = "cpu"
    """What runs the graphs; cuda needs an onnxruntime built for it."""
    model_runtimes: dict[str, RuntimeOptions] = {}
    """num_threads, allow_spinning and provider of single models, as JSON: {"g2p-en": {"num_threads": 2}}."""

    store: Literal["lmdb", "redis", "memory"] = "lmdb"
    """Where sessions that outlive their stream or this process are kept: embedded in data_folder, in a Redis or Valkey
    that several servers share, or nowhere beyond this process."""
    data_folder: Path = Path("carousel-data")
    """Folder of the embedded store and of the key that signs snapshots; made when it is first needed. Keep
    nothing else in it: the server takes other users' rights on it away."""
    redis_url: CheckedRedisUrl = DEFAULT_REDIS_URL
    """Redis or Valkey for `store=redis`."""
    snapshot_key_file: Path | None = None
    """File whose bytes sign snapshots, 16 or more; servers that exchange snapshots, or share a store, need the same. By
    default one is made in data_folder; `store=redis` needs one that is given."""
    storage_key_file: Path | None = None
    """File of the keys that encrypt stored sessions: a line each, an id, a space and 32 bytes in base64. The first
    encrypts, all decrypt. Servers that share a store need the same keys. Needs the extra `encryption`."""
    snapshot_compression: bool = False
    """Compress snapshots and checkpoints with zstd."""
    max_durability: Literal["none", "checkpoint", "strict"] = "strict"
    """The most that a session may ask to have stored."""
    checkpoint_interval_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds that a session may be ahead of its checkpoint."""
    checkpoint_tokens: Annotated[int, Field(ge=1)] = 4096
    """Tokens that a session may be ahead of its checkpoint."""
    lease_s: Annotated[float, Field(ge=0.3)] = 3.0
    """Seconds without a sign of life after which other servers may go on with this one's sessions."""
    hold_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a session without a stream is held in memory when it does not say how long, and that a restored or
    forked session waits to be resumed when it would end with its stream."""
    max_hold_s: Annotated[float, Field(gt=0)] = 3600.0
    """The longest that one may ask for."""
    keep_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds that a session without a stream is kept in the store when it does not say how long."""
    max_keep_s: Annotated[float, Field(gt=0)] = 2_592_000.0
    """The longest that one may ask for."""
    replay_tokens: Annotated[int, Field(ge=1)] = 16_384
    """Tokens of a generation that are kept, so that who comes back after a lost connection can be told them again."""
    max_marks: Annotated[int, Field(ge=0)] = 8
    """Marks of one session, each of which takes the memory of its state."""
    max_slots: Annotated[int, Field(ge=0)] = 0
    """Sessions of one variant of a model whose state is in memory at once; others go to the store when they are idle,
    and come back. 0: as many as max_sessions."""
    watch_models_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between two looks for new versions in the folder of models. 0: it is looked at when asked."""

    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds after SIGTERM in which running generations may finish and clients move their sessions away."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: give both, or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.example and "models" in self.model_fields_set:
            raise ValueError(
                "--example serves the models that come with the server, and no others: leave out --models"
                f" ({self.models}) and CAROUSEL_MODELS, or --example and CAROUSEL_EXAMPLE"
            )
        return self

    @model_validator(mode="after")
    def _check_forks(self) -> Self:
        if self.num_forks < self.max_forks:
            raise ValueError(
                f"num_forks = {self.num_forks} is less than max_forks = {self.max_forks}, which one search or score may"
                " take: raise num_forks, or lower max_forks"
            )
        return self

    @property
    def model_folder(self) -> Path:
        """The folder of the bundles that are served."""
        return _EXAMPLES if self.example else self.models

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
            num_slots=self.max_slots or self.max_sessions,
            num_forks=self.num_forks,
            max_waiting=self.max_waiting,
            max_batch_rows=self.max_batch_rows,
            max_batch_tokens=self.max_batch_tokens or None,
            max_chunk_tokens=min(self.max_chunk_tokens, self.max_batch_tokens or self.max_chunk_tokens),
            inline_s=self.inline_s,
        )

    @property
    def session_limits(self) -> SessionLimits:
        """What sessions are allowed."""
        return SessionLimits(
            max_sessions=self.max_sessions,
            idle_timeout_s=self.idle_timeout_s,
            max_age_s=self.max_age_s,
            max_feed_tokens=self.max_feed_tokens,
            max_generate_tokens=self.max_generate_tokens,
            max_in_flight=self.max_in_flight,
            max_forks=self.max_forks,
            generation_window=self.generation_window,
            max_answer_bytes=self.max_message_bytes - _FRAMING_BYTES,
            num_tombstones=self.num_tombstones,
            replay_tokens=self.replay_tokens,
            max_marks=self.max_marks,
            hold_s=min(self.hold_s, self.max_hold_s),
        )

    @property
    def policy_limits(self) -> PolicyLimits:
        """What sessions may agree on."""
        return PolicyLimits(
            max_durability=Durability[self.max_durability.upper()],
            hold_s=self.hold_s,
            max_hold_s=self.max_hold_s,
            keep_s=self.keep_s,
            max_keep_s=self.max_keep_s,
        )


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is RedisUrl)
"""Settings whose value no message shows."""


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Environment variables that look like settings and are none, each with the setting that is spelt most like it."""
    prefix = Settings.model_config["env_prefix"]
    names = {name.upper() for name in Settings.model_fields}
    told = []
    for variable in sorted(environ):
        name = variable.upper().removeprefix(prefix)
        if name != variable.upper() and name not in names | _OF_THE_CLIENT and not _OF_KUBERNETES.match(variable):
            nearest = get_close_matches(name, names, 1)
            told.append((variable, f"{prefix}{nearest[0]}" if nearest else None))
    return told

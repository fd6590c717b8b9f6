"""All settings of the server: each has a flag, an environment variable `CAROUSEL_*`, a default and a help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.engine.limits import EngineLimits
from service.engine.rows import ROW_BUCKETS
from service.hosts import checked_host, checked_origin, checked_without_user
from service.redis_url import DEFAULT as DEFAULT_REDIS_URL
from service.redis_url import CheckedRedisUrl, RedisUrl
from service.repository.runtime import NumThreads, Provider, RuntimeOptions, Runtimes
from service.sessions.limits import PolicyLimits, SessionLimits
from service.sessions.persistence import Durability
from service.sessions.stores.base import LEASE_S
from service.telemetry.access_log import AccessLevel

_FRAMING_BYTES = 512
"""Most bytes of a response besides its answer: ids of request and session, positions, and the framing of fields."""

_ENGINE, _SESSIONS, _POLICY, _RUNTIME = EngineLimits(), SessionLimits(), PolicyLimits(), RuntimeOptions()
"""They state the defaults of the settings that limit them."""

_EXAMPLES = Path(__file__).parent.parent / "model_repository"
"""All models of a checkout. An installed server has only the smallest of them here."""

_MAX_S = 1e9
"""Upper limit of all times in seconds: 31 years."""


def _not_empty(path: object) -> object:
    if path == "":  # it would be the current folder
        raise ValueError("it is empty: give a path, or leave the setting out")
    return path


GivenPath = Annotated[Path, BeforeValidator(_not_empty)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=_MAX_S)]
SecondsOrZero = Annotated[float, Field(ge=0, le=_MAX_S)]
PageHost = Annotated[str, AfterValidator(checked_host)]
Origin = Annotated[str, AfterValidator(checked_origin)]


class Settings(BaseSettings):
    """Serves recurrent models: sessions that keep their hidden and cell state, over gRPC.

    Commands, given as the first argument, which do not serve; `health --help` and `token --help` explain them:
      health      ask a server on this machine whether it serves
      token NAME  make a token for a principal
      --version   print the version
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

    models: GivenPath = Path("model_repository")
    """Folder of the model repository; each bundle is in `<model>/<version>/`."""
    example: bool = False
    """Serve the example models that come with the server. Cannot be combined with `models`."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all IPv4 addresses."""
    port: Port = 50051
    """Port of the gRPC services. 0: any free port."""
    metrics_port: Port = 9100
    """Port of `/metrics` for Prometheus. 0: any free port."""
    check: bool = False
    """Check everything that a start needs, and every bundle; print the results and exit. The exit code is 0 when the
    server would start and serve every bundle."""

    check_memory_mib: Annotated[int, Field(ge=256)] = 2048
    """Memory in MiB that the graphs of one version may use in a trial run, which has its own process. `check` makes
    this trial, and so does a running server before it loads a new version."""
    check_time_s: Seconds = 120.0
    """Seconds that a trial run of one version's graphs may take; see check_memory_mib."""

    wire: Literal["auto", "grpcio", "envoy"] = "auto"
    """Transport: gRPC's own library, or Envoy with the server inside, which is faster and speaks gRPC-Web, Connect and
    JSON too. auto: Envoy on Linux if the extra `envoy` and a shared libpython are installed, else gRPC's library."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages that may call the server, as JSON: ["https://app.example"]. Needs the wire `envoy`."""
    page: bool = True
    """Serve a web page at `/` on which users can try the models. Needs the wire `envoy`."""
    page_hosts: tuple[PageHost, ...] = ()
    """Host names and addresses, besides localhost, under which browsers may open the server's page, as JSON:
    ["carousel.example"]. A server that does not listen on loopback allows every IP address."""

    log_format: Literal["text", "json"] = "text"
    """Format of the log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged; debug logs every session."""
    access_log: AccessLevel = "errors"
    """Which calls write the log line `call.ended` when they end, at any log_level: none of them, those that failed or
    had a failed request, or all."""

    reflection: bool = True
    """Serve gRPC reflection, which lists the services to clients."""
    metrics: bool = True
    """Serve `/metrics`."""
    health_port: Port | None = None
    """Additional port for gRPC's health service only, in plain text and without authentication: for probes, when the
    services need TLS."""
    tls_cert_file: GivenPath | None = None
    """PEM file of the server's certificate and its chain. With it, clients must use TLS. The server reads the file
    again when it changes."""
    tls_key_file: GivenPath | None = None
    """PEM file of the certificate's private key."""
    tls_client_ca_file: GivenPath | None = None
    """PEM file of the certificate authorities that clients' certificates must be signed by (mutual TLS). A certificate
    can also name a principal: see tokens_file."""
    tokens_file: GivenPath | None = None
    """TOML file of principals: the hashes of their tokens, see `python -m service token`, and the names of their client
    certificates, which need tls_client_ca_file. With it, every call needs one or the other; without it, every client
    may do everything. The server reads the file again when it changes."""
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 16 * 1024
    """Maximum size in bytes of one call's metadata."""

    otlp_endpoint: Annotated[str, AfterValidator(checked_without_user)] = ""
    """Address to which traces are sent by OTLP over gRPC, such as `http://collector:4317`; empty: no traces. Needs the
    extra `tracing`."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of the calls to trace, among calls that arrive without a trace of their own. 1: all."""

    max_sessions: Annotated[int, Field(ge=1, le=10_000_000)] = _SESSIONS.max_sessions
    """Maximum number of open sessions. A slot takes memory only after a session has used it."""
    idle_timeout_s: Seconds = _SESSIONS.idle_timeout_s
    """Seconds without a request after which the server closes a session and notifies its stream."""
    max_age_s: SecondsOrZero = _SESSIONS.max_age_s
    """Seconds from a session's opening until the server closes it and removes its record, even if it is in use; its
    snapshots and forks count from the same moment. 0: no limit. Servers that share a store need the same value."""
    max_in_flight: Annotated[int, Field(ge=1)] = _SESSIONS.max_in_flight
    """Maximum number of unanswered requests of one session."""
    max_feed_tokens: Annotated[int, Field(ge=1)] = _SESSIONS.max_feed_tokens
    """Maximum number of tokens in one feed."""
    max_generate_tokens: Annotated[int, Field(ge=1)] = _SESSIONS.max_generate_tokens
    """Maximum number of tokens in one generation."""
    max_forks: Annotated[int, Field(ge=1, le=ROW_BUCKETS[-1])] = _SESSIONS.max_forks
    """Maximum number of beams of one search, and of targets of one score."""
    generation_window: Annotated[int, Field(ge=1)] = _SESSIONS.generation_window
    """Maximum number of tokens that a generation may be ahead of those written to its client."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4 * 1024 * 1024
    """Maximum size in bytes of one message, request or response."""
    max_calls: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Maximum number of calls in progress; each stream is one call. More calls are refused with a retry delay."""
    num_tombstones: Annotated[int, Field(ge=0)] = _SESSIONS.num_tombstones
    """Number of closed sessions whose close reason the server remembers, to report it to a client that comes back."""

    max_waiting: Annotated[int, Field(ge=1)] = _ENGINE.max_waiting
    """Maximum number of unanswered requests of one variant of a model."""
    num_forks: Annotated[int, Field(ge=1, le=10_000_000)] = _ENGINE.num_forks
    """Maximum number of beams and scored targets of one variant of a model at once; each takes the memory of a session.
    At least max_forks."""
    max_batch_rows: Annotated[int, Field(ge=1, le=ROW_BUCKETS[-1])] = _ENGINE.max_batch_rows
    """Maximum number of sessions that one run of a graph advances."""
    max_batch_tokens: Annotated[int, Field(ge=0)] = 0
    """Maximum of sessions times tokens in one run of a graph, which limits how long a batch takes. 0: the number that
    takes about 4 ms, measured when a model is loaded, from 256 to 2048."""
    max_chunk_tokens: Annotated[int, Field(ge=1)] = _ENGINE.max_chunk_tokens
    """Maximum number of tokens of one session in one run. Other sessions' steps run between chunks of a longer feed."""
    inline_s: SecondsOrZero = _ENGINE.inline_s
    """Longest estimated seconds of a batch that runs on the event loop; longer batches run on the model's thread. 0:
    all batches run on the model's thread."""
    num_threads: NumThreads = _RUNTIME.num_threads
    """ONNX Runtime's threads inside one operator, for each model."""
    allow_spinning: bool = _RUNTIME.allow_spinning
    """Let ONNX Runtime's threads keep their cores busy while they wait for work (spinning)."""
    provider: Provider = _RUNTIME.provider
    """ONNX Runtime's execution provider; cuda needs an onnxruntime built for it."""
    model_runtimes: dict[str, RuntimeOptions] = {}
    """num_threads, allow_spinning and provider for single models, as JSON: {"g2p-en": {"num_threads": 2}}."""

    store: Literal["lmdb", "redis", "memory"] = "lmdb"
    """Where sessions are stored that outlive their stream or this process: embedded in data_folder, in a Redis or
    Valkey that several servers share, or only in this process's memory."""
    data_folder: GivenPath = Path("carousel-data")
    """Folder of the embedded store and of the key that signs snapshots; the server makes it when needed. Keep nothing
    else in it: the server removes other users' permissions on it."""
    redis_url: CheckedRedisUrl = DEFAULT_REDIS_URL
    """Redis or Valkey for `store=redis`."""
    snapshot_key_file: GivenPath | None = None
    """File whose bytes, 16 or more, are the key that signs snapshots. Servers that exchange snapshots or share a store
    need the same key. Default: a key that the server makes in data_folder; `store=redis` needs a file."""
    storage_key_file: GivenPath | None = None
    """File of the keys that encrypt stored sessions. Each line has an id, a space and 32 bytes in base64. The first key
    encrypts, all decrypt. Servers that share a store need the same keys. Needs the extra `encryption`."""
    snapshot_compression: bool = False
    """Compress snapshots and checkpoints with zstd."""
    max_durability: Literal["none", "checkpoint", "strict"] = "strict"
    """Highest durability that a session may ask for."""
    checkpoint_interval_s: Seconds = 1.0
    """Maximum number of seconds that a session may be ahead of its checkpoint."""
    checkpoint_tokens: Annotated[int, Field(ge=1)] = 4096
    """Maximum number of tokens that a session may be ahead of its checkpoint."""
    lease_s: Annotated[float, Field(ge=0.3, le=_MAX_S)] = LEASE_S
    """Seconds without a heartbeat after which other servers may resume this server's sessions."""
    hold_s: Seconds = _POLICY.hold_s
    """Seconds that a session without a stream is held in memory, if its client does not say how long. A restored or
    forked session that would end with its stream also waits this long to be resumed."""
    max_hold_s: Seconds = _POLICY.max_hold_s
    """Maximum number of seconds that a client may ask for instead of hold_s."""
    keep_s: Seconds = _POLICY.keep_s
    """Seconds that the store keeps a session without a stream, if its client does not say how long."""
    max_keep_s: Seconds = _POLICY.max_keep_s
    """Maximum number of seconds that a client may ask for instead of keep_s."""
    replay_tokens: Annotated[int, Field(ge=1)] = _SESSIONS.replay_tokens
    """Number of tokens of a generation that are kept to replay them to a client that resumes after a disconnect."""
    max_marks: Annotated[int, Field(ge=0)] = _SESSIONS.max_marks
    """Maximum number of marks of one session; each takes the memory of its state."""
    max_slots: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Sessions of one variant of a model whose state is in memory at once; idle sessions beyond it are spilled to the
    store and restored on their next request. 0: max_sessions."""
    watch_models_s: SecondsOrZero = 0.0
    """Seconds between two scans of the folder of models for new versions. 0: scan only on SIGHUP or on request."""

    shutdown_grace_s: SecondsOrZero = 10.0
    """Seconds after SIGTERM in which running generations may finish and clients may move their sessions away."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file must be set together: set both, or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.example and "models" in self.model_fields_set:
            raise ValueError(
                "--example serves only the models that come with the server: leave out --models"
                f" ({self.models}) and CAROUSEL_MODELS, or --example and CAROUSEL_EXAMPLE"
            )
        return self

    @model_validator(mode="after")
    def _check_forks(self) -> Self:
        if self.num_forks < self.max_forks:
            raise ValueError(
                f"num_forks = {self.num_forks} must be at least max_forks = {self.max_forks}, the most that one search"
                " or score may need: increase num_forks, or decrease max_forks"
            )
        return self

    @property
    def model_folder(self) -> Path:
        """The folder of the models that are served."""
        return _EXAMPLES if self.example else self.models

    @property
    def runtimes(self) -> Runtimes:
        """The options with which each model's graphs are run."""
        default = RuntimeOptions(
            num_threads=self.num_threads, allow_spinning=self.allow_spinning, provider=self.provider
        )
        return Runtimes(default, self.model_runtimes)

    @property
    def engine_limits(self) -> EngineLimits:
        """The limits of each engine."""
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
        """The limits of sessions."""
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
        """The limits of the policies that sessions may ask for."""
        return PolicyLimits(
            max_durability=Durability[self.max_durability.upper()],
            hold_s=self.hold_s,
            max_hold_s=self.max_hold_s,
            keep_s=self.keep_s,
            max_keep_s=self.max_keep_s,
        )


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is RedisUrl)
"""Names of the settings whose values no message shows."""

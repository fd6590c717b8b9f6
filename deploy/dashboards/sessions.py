"""The dashboard of sessions: their lifecycle and their durability."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Query, Row
from deploy.dashboards.queries import EMPTY, HERE, MODEL, mean, percentiles, rate

DASHBOARD = Dashboard(
    uid="carousel-sessions",
    title="Sessions",
    description="The life of sessions (opened, resumed, spilled, stored, closed) and the state of the store.",
    rows=(
        Row(
            "Lifecycle",
            (
                Panel(
                    "Active sessions",
                    "The number of open sessions by model, and of those, the spilled ones.",
                    "short",
                    (
                        Query(f"sum by (model) (carousel_sessions_active{{{MODEL}}})", "{{model}}"),
                        Query(f"sum by (model) (carousel_sessions_spilled{{{MODEL}}})", "{{model}} spilled"),
                    ),
                    EMPTY,
                ),
                Panel(
                    "Session open and close rate",
                    "Sessions per second that were opened and closed.",
                    "ops",
                    (
                        Query(rate("carousel_sessions_opened_total"), "opened"),
                        Query(rate("carousel_sessions_closed_total"), "closed"),
                    ),
                    "No session was opened yet",
                ),
                Panel(
                    "Session close rate by reason",
                    "client, disconnect: normal; moved: to another server; idle: unused; lost, failed: server faults.",
                    "ops",
                    (Query(rate("carousel_sessions_closed_total", "reason"), "{{reason}}"),),
                    "No session was closed yet",
                    is_stacked=True,
                ),
                Panel(
                    "Resume rate",
                    "Sessions per second that clients resumed, from memory or from the store.",
                    "ops",
                    (Query(rate("carousel_sessions_resumed_total", "source"), "from {{source}}"),),
                    "No session was resumed yet",
                ),
                Panel(
                    "Detach rate",
                    "Sessions per second that were held or kept because their stream ended.",
                    "ops",
                    (Query(rate("carousel_sessions_detached_total", "model"), "{{model}}"),),
                    "No session was detached yet",
                ),
                Panel(
                    "Replayed request rate",
                    "Retries per second that were answered from memory.",
                    "reqps",
                    (Query(rate("carousel_replayed_requests_total", "request"), "{{request}}"),),
                    "No request was retried yet",
                ),
            ),
        ),
        Row(
            "Durability",
            (
                Panel(
                    "Store state",
                    "The worst state among all servers: up while reads and writes of the store succeed.",
                    "short",
                    (Query(f"min(carousel_store_up{{{HERE}}})", "store"),),
                    EMPTY,
                    "stat",
                    4,
                    states=("down", "up"),
                ),
                Panel(
                    "Checkpoint lag",
                    "The longest time that a session has waited to be stored: a crash now loses that much.",
                    "s",
                    (Query(f"max(carousel_checkpoint_lag_seconds{{{HERE}}})", "lag"),),
                    EMPTY,
                    "stat",
                    4,
                    limits=(5, 30),
                ),
                Panel(
                    "Checkpoint delay",
                    "The time from a session's first change after a checkpoint to its next checkpoint.",
                    "s",
                    percentiles("carousel_checkpoint_delay_seconds", HERE),
                    "No checkpoint yet",
                ),
                Panel(
                    "Checkpoint rate",
                    "Records per second that were written.",
                    "ops",
                    (Query(rate("carousel_checkpoints_total", "instance", HERE), "{{instance}}"),),
                    "No checkpoint yet",
                ),
                Panel(
                    "Store latency (p95)",
                    "The time of a batch of writes, and the time to find and claim a record.",
                    "s",
                    tuple(
                        Query(
                            f"histogram_quantile(0.95, {rate(f'carousel_store_{what}_seconds_bucket', 'le', HERE)})",
                            what,
                        )
                        for what in ("write", "read")
                    ),
                    "The store was not used yet",
                ),
                Panel(
                    "Checkpoint throughput",
                    "Bytes of checkpoints per second.",
                    "Bps",
                    (Query(rate("carousel_checkpoint_bytes_total", "instance", HERE), "{{instance}}"),),
                    "No checkpoint yet",
                ),
                Panel(
                    "Snapshot size",
                    "The mean size of a session in a checkpoint, and in Sessions.Snapshot.",
                    "bytes",
                    (Query(mean("carousel_snapshot_bytes", "use", HERE), "{{use}}"),),
                    "No snapshot yet",
                ),
                Panel(
                    "Store error rate",
                    "Failed operations per second, and unreadable records per second, which are quarantined.",
                    "ops",
                    (
                        Query(rate("carousel_store_errors_total", "operation", HERE), "{{operation}}"),
                        Query(rate("carousel_corrupt_records_total", "", HERE), "unreadable"),
                    ),
                    "No errors",
                    width=12,
                ),
                Panel(
                    "Spill rate",
                    "Sessions per second that were spilled to the store. If there are many, add slots or servers.",
                    "ops",
                    (Query(rate("carousel_session_spills_total", "model"), "{{model}}"),),
                    "No session was spilled yet",
                    width=12,
                ),
            ),
        ),
    ),
)

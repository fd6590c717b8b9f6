"""The dashboard of sessions: their lifecycle and their durability."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Query, Row
from deploy.dashboards.queries import EMPTY, HERE, MODEL, mean, percentiles, rate

DASHBOARD = Dashboard(
    uid="carousel-sessions",
    title="Sessions",
    description="Lives of sessions: opened, resumed, spilled, stored, closed; and how the store does.",
    rows=(
        Row(
            "Lifecycle",
            (
                Panel(
                    "Active sessions",
                    "Sessions that are open, by model; those spilled to the store among them.",
                    "short",
                    (
                        Query(f"sum by (model) (carousel_sessions_active{{{MODEL}}})", "{{model}}"),
                        Query(f"sum by (model) (carousel_sessions_spilled{{{MODEL}}})", "{{model}} spilled"),
                    ),
                    EMPTY,
                ),
                Panel(
                    "Session open and close rate",
                    "Sessions a second.",
                    "ops",
                    (
                        Query(rate("carousel_sessions_opened_total"), "opened"),
                        Query(rate("carousel_sessions_closed_total"), "closed"),
                    ),
                    "No session was opened yet",
                ),
                Panel(
                    "Session close rate by reason",
                    "client, disconnect: usual; moved: to another server; idle: nobody asked; lost, failed: ours.",
                    "ops",
                    (Query(rate("carousel_sessions_closed_total", "reason"), "{{reason}}"),),
                    "No session was closed yet",
                    is_stacked=True,
                ),
                Panel(
                    "Resume rate",
                    "Sessions a second that a client resumed: from memory, or from the store.",
                    "ops",
                    (Query(rate("carousel_sessions_resumed_total", "source"), "from {{source}}"),),
                    "No session was resumed yet",
                ),
                Panel(
                    "Detach rate",
                    "Sessions a second whose stream ended, and that are held or kept.",
                    "ops",
                    (Query(rate("carousel_sessions_detached_total", "model"), "{{model}}"),),
                    "No session was detached yet",
                ),
                Panel(
                    "Replayed request rate",
                    "Requests a second that clients sent again and that were answered from memory.",
                    "reqps",
                    (Query(rate("carousel_replayed_requests_total", "request"), "{{request}}"),),
                    "Nothing was sent again yet",
                ),
            ),
        ),
        Row(
            "Durability",
            (
                Panel(
                    "Store state",
                    "Up while the store does what it is asked and writes succeed, of all servers the worst.",
                    "short",
                    (Query(f"min(carousel_store_up{{{HERE}}})", "store"),),
                    EMPTY,
                    "stat",
                    4,
                    states=("down", "up"),
                ),
                Panel(
                    "Checkpoint lag",
                    "How long the session that waits longest has waited: what a crash would set back.",
                    "s",
                    (Query(f"max(carousel_checkpoint_lag_seconds{{{HERE}}})", "lag"),),
                    EMPTY,
                    "stat",
                    4,
                    limits=(5, 30),
                ),
                Panel(
                    "Checkpoint delay",
                    "From a session's first move since its last checkpoint to its next.",
                    "s",
                    percentiles("carousel_checkpoint_delay_seconds", HERE),
                    "No checkpoint yet",
                ),
                Panel(
                    "Checkpoint rate",
                    "Records written, a second.",
                    "ops",
                    (Query(rate("carousel_checkpoints_total", "instance", HERE), "{{instance}}"),),
                    "No checkpoint yet",
                ),
                Panel(
                    "Store latency (p95)",
                    "A batch of writes; and finding, and claiming, a record.",
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
                    "Bytes of checkpoints, a second.",
                    "Bps",
                    (Query(rate("carousel_checkpoint_bytes_total", "instance", HERE), "{{instance}}"),),
                    "No checkpoint yet",
                ),
                Panel(
                    "Snapshot size",
                    "Mean bytes of a session: by checkpoint, and by Sessions.Snapshot.",
                    "bytes",
                    (Query(mean("carousel_snapshot_bytes", "use", HERE), "{{use}}"),),
                    "No snapshot yet",
                ),
                Panel(
                    "Store error rate",
                    "Operations a second that failed; records set aside as unreadable.",
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
                    "Sessions a second whose state left memory for the store; many: add slots or servers.",
                    "ops",
                    (Query(rate("carousel_session_spills_total", "model"), "{{model}}"),),
                    "No session was spilled yet",
                    width=12,
                ),
            ),
        ),
    ),
)

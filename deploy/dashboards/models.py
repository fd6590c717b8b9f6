"""The dashboard of model versions: their loads, batches and latencies."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Query, Row
from deploy.dashboards.queries import EMPTY, QUIET, VERSION, mean, percentile_by_graph, percentiles, rate

DASHBOARD = Dashboard(
    uid="carousel-models",
    title="Models",
    description="The work of each version: its batches, how full they are, and the parts of a step's time.",
    variables=("instance", "model", "version"),
    rows=(
        Row(
            "Versions",
            (
                Panel(
                    "Servers by version",
                    "The number of servers that serve each version; 0 when it failed to load or was unloaded.",
                    "short",
                    (
                        Query(
                            f"sum by (model, version) (carousel_models_served{{{VERSION}}})",
                            "{{model}}/{{version}}",
                        ),
                    ),
                    EMPTY,
                    "stat",
                    states=("not served",),
                ),
                Panel(
                    "Session state size",
                    "The bytes of state and context that each session of a variant holds in memory.",
                    "bytes",
                    (
                        Query(
                            f"max by (model, version, variant) (carousel_session_state_bytes{{{VERSION}}})",
                            "{{model}}/{{version}} {{variant}}",
                        ),
                    ),
                    EMPTY,
                    "stat",
                ),
                Panel(
                    "Model loads",
                    "Versions loaded since the servers started, and loads that failed.",
                    "short",
                    (
                        Query(
                            f"sum by (result) (carousel_model_loads_total{{{VERSION}}})",
                            "{{result}}",
                        ),
                    ),
                    EMPTY,
                    "stat",
                ),
            ),
        ),
        Row(
            "Batches",
            (
                Panel(
                    "Step rate",
                    "Tokens per second that each version's graphs computed.",
                    "cps",
                    (
                        Query(
                            rate("carousel_steps_total", "model, version, variant, graph", VERSION),
                            "{{model}}/{{version}} {{variant}} {{graph}}",
                        ),
                    ),
                    QUIET,
                    is_stacked=True,
                ),
                Panel(
                    "Mean batch size",
                    "The mean number of sessions in one run: the gain of continuous batching.",
                    "short",
                    (
                        Query(
                            mean("carousel_batch_size", "model, version, variant, graph", VERSION),
                            "{{model}}/{{version}} {{variant}} {{graph}}",
                        ),
                    ),
                    QUIET,
                ),
                Panel(
                    "Batch fill ratio",
                    "Steps divided by (rows times width). The rest is padding of chunks of different lengths.",
                    "percentunit",
                    (
                        Query(
                            f"carousel:batch_fill:ratio_rate1m{{{VERSION}}}",
                            "{{instance}} {{model}}/{{version}} {{variant}}",
                        ),
                    ),
                    QUIET,
                ),
                Panel(
                    "Batch size distribution",
                    "Batches per second by their number of sessions.",
                    "short",
                    (Query(rate("carousel_batch_size_bucket", "le", f'{VERSION},graph="step"'), "{{le}}"),),
                    QUIET,
                    "heatmap",
                    12,
                ),
                Panel(
                    "Graph run rate",
                    "Runs per second of each graph, and failed runs.",
                    "ops",
                    (
                        Query(
                            rate("carousel_step_latency_seconds_count", "model, version, graph", VERSION),
                            "{{model}}/{{version}} {{graph}}",
                        ),
                        Query(
                            rate("carousel_batch_failures_total", "model, version, graph", VERSION),
                            "{{model}}/{{version}} {{graph}} failed",
                        ),
                    ),
                    QUIET,
                    width=12,
                ),
            ),
        ),
        Row(
            "Step latency breakdown",
            (
                Panel(
                    "Queue time",
                    "The time from a request's arrival to its first batch.",
                    "s",
                    percentiles("carousel_request_queue_time_seconds", VERSION),
                    QUIET,
                ),
                Panel(
                    "Batch assembly time (p95)",
                    "The time to choose rows and gather their state.",
                    "s",
                    (percentile_by_graph("carousel_batch_assembly_seconds"),),
                    QUIET,
                ),
                Panel(
                    "Graph run time (p95)",
                    "The time of a run in ONNX Runtime.",
                    "s",
                    (percentile_by_graph("carousel_graph_run_seconds"),),
                    QUIET,
                ),
                Panel(
                    "Batch commit time (p95)",
                    "The time to choose tokens and scatter the state.",
                    "s",
                    (percentile_by_graph("carousel_batch_commit_seconds"),),
                    QUIET,
                ),
                Panel(
                    "Graph share of step time",
                    "The share of a batch's time that the graph's run takes. The rest is the server's own work.",
                    "percentunit",
                    (
                        Query(
                            # clamped: Prometheus reads the two counters one after the other, and a batch may end
                            # between the two readings
                            f"clamp_max({rate('carousel_graph_run_seconds_sum', 'model, version, graph', VERSION)} / "
                            f"({rate('carousel_step_latency_seconds_sum', 'model, version, graph', VERSION)} > 0), 1)",
                            "{{model}}/{{version}} {{graph}}",
                        ),
                    ),
                    QUIET,
                ),
                Panel(
                    "Slots and forks in use",
                    "Used slots, all slots, and the forks of beam searches and scores.",
                    "short",
                    (
                        Query(
                            f"sum by (model, version) (carousel_slots_used{{{VERSION}}})",
                            "{{model}}/{{version}} used",
                        ),
                        Query(f"sum by (model, version) (carousel_slots{{{VERSION}}})", "{{model}}/{{version}} all"),
                        Query(
                            f"sum by (model, version) (carousel_forks_used{{{VERSION}}})",
                            "{{model}}/{{version}} forks",
                        ),
                    ),
                    EMPTY,
                ),
            ),
        ),
    ),
)

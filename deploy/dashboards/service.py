"""The dashboard of the service as clients see it: traffic, errors, latency and saturation."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Query, Row
from deploy.dashboards.queries import EMPTY, HERE, MODEL, QUIET, percentiles, rate

DASHBOARD = Dashboard(
    uid="carousel-service",
    title="Service",
    description="What clients get: traffic, errors, latency, and how near the server is to its limits.",
    rows=(
        Row(
            "Overview",
            (
                Panel(
                    "Servers up",
                    "Servers that answer Prometheus.",
                    "short",
                    (Query(f'sum(up{{job="carousel",{HERE}}})', "servers"),),
                    EMPTY,
                    "stat",
                    4,
                    states=("down",),
                ),
                Panel(
                    "Token throughput",
                    "Tokens consumed or generated, a second.",
                    "cps",
                    (Query(rate("carousel_tokens_total"), "tokens"),),
                    QUIET,
                    "stat",
                    4,
                ),
                Panel(
                    "Active sessions",
                    "Sessions that are open.",
                    "short",
                    (Query(f"sum(carousel_sessions_active{{{MODEL}}})", "sessions"),),
                    EMPTY,
                    "stat",
                    4,
                ),
                Panel(
                    "Error ratio",
                    "Part of all requests that the server failed, over 5 minutes. The objective is 0.1 %.",
                    "percentunit",
                    (Query("carousel:request_errors:ratio_rate5m", "failed"),),
                    QUIET,
                    "stat",
                    4,
                    limits=(0.001, 0.0144),
                ),
                Panel(
                    "Slow feed ratio",
                    "Part of all feeds answered after more than 0.1 s, over 5 minutes. The objective is 1 %.",
                    "percentunit",
                    (Query("carousel:slow_feeds:ratio_rate5m", "slow"),),
                    "No feeds",
                    "stat",
                    4,
                    limits=(0.01, 0.144),
                ),
                Panel(
                    "Slot utilization",
                    "The fullest model: sessions in memory, of those that may be.",
                    "percentunit",
                    (Query(f"max(carousel:sessions_per_slot:ratio{{{MODEL}}})", "taken"),),
                    EMPTY,
                    "stat",
                    4,
                    limits=(0.8, 0.95),
                ),
            ),
        ),
        Row(
            "Traffic and errors",
            (
                Panel(
                    "Token throughput by request",
                    "Tokens a second that sessions consumed (feed) or the server generated.",
                    "cps",
                    (Query(rate("carousel_tokens_total", "model, request"), "{{model}} {{request}}"),),
                    QUIET,
                    is_stacked=True,
                ),
                Panel(
                    "Request rate",
                    "Requests a second whose last answer was given.",
                    "reqps",
                    (Query(rate("carousel_request_latency_seconds_count", "request"), "{{request}}"),),
                    QUIET,
                ),
                Panel(
                    "Error rate by reason",
                    "Requests and calls refused or failed, a second. INVALID_ARGUMENT and its like are the callers'.",
                    "reqps",
                    (Query(rate("carousel_errors_total", "code, reason"), "{{code}} {{reason}}"),),
                    "No errors",
                    is_stacked=True,
                ),
                Panel(
                    "Call rate by status",
                    "gRPC calls that ended, a second. A stream is one call, however many messages it had.",
                    "reqps",
                    (Query(rate("carousel_calls_total", "method, code", HERE), "{{method}} {{code}}"),),
                    "No call has ended",
                    width=12,
                ),
                Panel(
                    "Active streams and connections",
                    "Open streams, other calls going on, and connections that have any.",
                    "short",
                    (
                        Query(f"sum by (method) (carousel_calls_active{{{HERE}}})", "{{method}}"),
                        Query(f"sum(carousel_connections_active{{{HERE}}})", "connections"),
                    ),
                    EMPTY,
                    width=12,
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Feed latency",
                    "From reading a feed to its answer. In the server: the network is not in it.",
                    "s",
                    percentiles("carousel_request_latency_seconds", f'{MODEL},request="feed"'),
                    "No feeds",
                ),
                Panel(
                    "Time to first token",
                    "From reading a generate request to its first token.",
                    "s",
                    percentiles("carousel_time_to_first_token_seconds"),
                    "No generations",
                ),
                Panel(
                    "Inter-token latency",
                    "Between two tokens of a generation; of tokens made in one burst, their mean.",
                    "s",
                    percentiles("carousel_inter_token_latency_seconds"),
                    "No generations",
                ),
                Panel(
                    "Feed latency distribution",
                    "How many feeds took how long: two bands where a percentile shows one line.",
                    "s",
                    (
                        Query(
                            rate("carousel_request_latency_seconds_bucket", "le", f'{MODEL},request="feed"'),
                            "{{le}}",
                        ),
                    ),
                    "No feeds",
                    "heatmap",
                    12,
                ),
                Panel(
                    "Inter-token latency distribution",
                    "How many tokens came how long after the one before.",
                    "s",
                    (Query(rate("carousel_inter_token_latency_seconds_bucket", "le"), "{{le}}"),),
                    "No generations",
                    "heatmap",
                    12,
                ),
            ),
        ),
        Row(
            "Saturation",
            (
                Panel(
                    "Queue depth",
                    "Requests admitted and not yet answered; also generations that wait for a slow reader.",
                    "short",
                    (Query(f"sum by (instance, model) (carousel_queue_depth{{{MODEL}}})", "{{instance}} {{model}}"),),
                    EMPTY,
                ),
                Panel(
                    "Rejected requests by reason",
                    "Requests a second answered RESOURCE_EXHAUSTED, by what had run out.",
                    "reqps",
                    (
                        Query(
                            rate("carousel_errors_total", "reason", f'{MODEL},code="RESOURCE_EXHAUSTED"'),
                            "{{reason}}",
                        ),
                    ),
                    "Nothing was refused",
                ),
                Panel(
                    "CPU usage",
                    "Cores that each server keeps busy.",
                    "short",
                    (
                        Query(
                            f'rate(process_cpu_seconds_total{{job="carousel",{HERE}}}[$__rate_interval])',
                            "{{instance}}",
                        ),
                    ),
                    EMPTY,
                ),
                Panel(
                    "Resident memory",
                    "Resident memory of each server.",
                    "bytes",
                    (Query(f'process_resident_memory_bytes{{job="carousel",{HERE}}}', "{{instance}}"),),
                    EMPTY,
                ),
                Panel(
                    "Response write time",
                    "Waits for a slow reader; long ones are clients that do not keep up.",
                    "s",
                    percentiles("carousel_response_write_seconds", HERE),
                    QUIET,
                ),
                Panel(
                    "File descriptor utilization",
                    "Open ones, of those that the process may open: a connection is one.",
                    "percentunit",
                    (
                        Query(
                            f'process_open_fds{{job="carousel",{HERE}}} / process_max_fds{{job="carousel",{HERE}}}',
                            "{{instance}}",
                        ),
                    ),
                    EMPTY,
                ),
                Panel(
                    "TLS certificate lifetime",
                    "Until the first certificate of a file ends; below 0 it has ended. The setting names the file.",
                    "s",
                    (
                        Query(
                            f"carousel_tls_certificate_expiry_timestamp_seconds{{{HERE}}} - time()",
                            "{{instance}} {{file}}",
                        ),
                    ),
                    "No TLS",
                ),
            ),
        ),
    ),
)

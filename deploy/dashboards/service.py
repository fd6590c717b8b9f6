"""The dashboard of the service as clients see it: traffic, errors, latency and saturation."""

from __future__ import annotations

from deploy.dashboards.panels import Dashboard, Panel, Query, Row
from deploy.dashboards.queries import EMPTY, HERE, MODEL, QUIET, percentiles, rate

DASHBOARD = Dashboard(
    uid="carousel-service",
    title="Service",
    description="The service as clients see it: traffic, errors, latency, and how near the server is to its limits.",
    rows=(
        Row(
            "Overview",
            (
                Panel(
                    "Servers up",
                    "The number of servers that answer Prometheus.",
                    "short",
                    (Query(f'sum(up{{job="carousel",{HERE}}})', "servers"),),
                    EMPTY,
                    "stat",
                    4,
                    states=("down",),
                ),
                Panel(
                    "Token throughput",
                    "Tokens per second that sessions consumed or generated.",
                    "cps",
                    (Query(rate("carousel_tokens_total"), "tokens"),),
                    QUIET,
                    "stat",
                    4,
                ),
                Panel(
                    "Active sessions",
                    "The number of open sessions.",
                    "short",
                    (Query(f"sum(carousel_sessions_active{{{MODEL}}})", "sessions"),),
                    EMPTY,
                    "stat",
                    4,
                ),
                Panel(
                    "Error ratio",
                    "The share of requests that the server failed, over 5 minutes. The objective is 0.1 %.",
                    "percentunit",
                    (Query("carousel:request_errors:ratio_rate5m", "failed"),),
                    QUIET,
                    "stat",
                    4,
                    limits=(0.001, 0.0144),
                ),
                Panel(
                    "Slow feed ratio",
                    "The share of feeds that took more than 0.1 s, over 5 minutes. The objective is 1 %.",
                    "percentunit",
                    (Query("carousel:slow_feeds:ratio_rate5m", "slow"),),
                    "No feeds",
                    "stat",
                    4,
                    limits=(0.01, 0.144),
                ),
                Panel(
                    "Slot utilization",
                    "The share of slots that are taken, for the model where it is highest.",
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
                    "Tokens per second that sessions consumed or generated, by kind of request.",
                    "cps",
                    (Query(rate("carousel_tokens_total", "model, request"), "{{model}} {{request}}"),),
                    QUIET,
                    is_stacked=True,
                ),
                Panel(
                    "Request rate",
                    "Requests per second that were answered completely.",
                    "reqps",
                    (Query(rate("carousel_request_latency_seconds_count", "request"), "{{request}}"),),
                    QUIET,
                ),
                Panel(
                    "Error rate by reason",
                    "Refused and failed requests and calls per second. INVALID_ARGUMENT is an error of the client.",
                    "reqps",
                    (Query(rate("carousel_errors_total", "code, reason"), "{{code}} {{reason}}"),),
                    "No errors",
                    is_stacked=True,
                ),
                Panel(
                    "Call rate by status",
                    "gRPC calls per second that ended. A stream is one call, however many messages it has.",
                    "reqps",
                    (Query(rate("carousel_calls_total", "method, code", HERE), "{{method}} {{code}}"),),
                    "No call has ended",
                    width=12,
                ),
                Panel(
                    "Active streams and connections",
                    "Open streams, other calls in progress, and connections with at least one call.",
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
                    "The time from reading a feed to its answer, in the server. It does not include the network.",
                    "s",
                    percentiles("carousel_request_latency_seconds", f'{MODEL},request="feed"'),
                    "No feeds",
                ),
                Panel(
                    "Time to first token",
                    "The time from reading a generate request to its first token.",
                    "s",
                    percentiles("carousel_time_to_first_token_seconds"),
                    "No generations",
                ),
                Panel(
                    "Inter-token latency",
                    "The time between two tokens of a generation. For the tokens of one burst, the mean.",
                    "s",
                    percentiles("carousel_inter_token_latency_seconds"),
                    "No generations",
                ),
                Panel(
                    "Feed latency distribution",
                    "Feeds per second by latency. It can show two groups where a percentile shows one line.",
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
                    "Generated tokens per second by the time since the previous token.",
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
                    "Accepted requests without an answer, including generations that wait for a slow reader.",
                    "short",
                    (Query(f"sum by (instance, model) (carousel_queue_depth{{{MODEL}}})", "{{instance}} {{model}}"),),
                    EMPTY,
                ),
                Panel(
                    "Rejected requests by reason",
                    "Requests per second that were refused with RESOURCE_EXHAUSTED. The reason names the limit.",
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
                    "The number of cores that each server uses.",
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
                    "The resident memory of each server.",
                    "bytes",
                    (Query(f'process_resident_memory_bytes{{job="carousel",{HERE}}}', "{{instance}}"),),
                    EMPTY,
                ),
                Panel(
                    "Response write time",
                    "The time that a response waits for its reader. It is long when clients read too slowly.",
                    "s",
                    percentiles("carousel_response_write_seconds", HERE),
                    QUIET,
                ),
                Panel(
                    "File descriptor utilization",
                    "The share of the process's limit of open files that is used. Each connection uses one.",
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
                    "The time until the first certificate in a file expires; below 0, it has expired.",
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

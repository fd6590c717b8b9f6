"""PromQL that several panels use, with Grafana's variables."""

from __future__ import annotations

from deploy.dashboards.panels import Query

HERE = 'instance=~"$instance"'
"""Selects series of the chosen servers: for metrics without the label `model`."""
MODEL = 'instance=~"$instance",model=~"$model"'
"""Selects series of the chosen servers and models."""
VERSION = f'{MODEL},version=~"$version"'
"""As MODEL, of the chosen versions. Only for a dashboard whose `variables` include `version`."""
EMPTY = "No server is scraped"
"""The empty state of gauges and of other series that every server has."""
QUIET = "No traffic"
"""The empty state of rates."""


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    """Returns the summed rate of a counter. by: the labels to keep."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def percentiles(metric: str, where: str = MODEL) -> tuple[Query, ...]:
    """Returns queries for the 50th, 95th and 99th percentile of a histogram."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({p / 100:g}, {buckets})", f"p{p}") for p in (50, 95, 99))


def percentile_by_graph(metric: str, p: float = 0.95) -> Query:
    """Returns a query for one percentile of a histogram, for each graph of each version. p: from 0 to 1."""
    buckets = f"sum by (le, model, version, graph) (rate({metric}_bucket{{{VERSION}}}[$__rate_interval]))"
    return Query(f"histogram_quantile({p:g}, {buckets})", "{{model}}/{{version}} {{graph}}")


def mean(metric: str, by: str, where: str) -> str:
    """Returns PromQL for the mean of the values that a histogram observed. by: the labels to keep."""
    return f"{rate(metric + '_sum', by, where)} / ({rate(metric + '_count', by, where)} > 0)"

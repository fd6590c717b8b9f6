"""Panels, rows and dashboards, and their conversion with Grafana's SDK. Each panel has a unit, a description and an
empty state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE_UID = "carousel-prometheus"
"""The uid in deploy/grafana/provisioning."""
WIDTH = 24
_SOURCE = models.DataSourceRef(type_val="prometheus", uid=DATASOURCE_UID)
_HEIGHTS = {"timeseries": 8, "stat": 4, "heatmap": 9}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    expr: PromQL, with Grafana's variables.
    legend: a template with labels of the result, such as `{{model}}`.
    """

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    title: `tests/deploy/test_dashboards.py` says which word a title needs for its unit.
    unit: Grafana's name of the unit, such as `s`, `bytes`, `cps` (tokens a second), `ops`, `reqps`, `percentunit` (0 to
    1) or `short` (a plain number).
    empty: the text shown when there is no data; it says what that means.
    width: in columns. A line has 24; a panel that does not fit starts the next line.
    limits: a stat is orange from the first value on, and red from the second.
    states: the texts that a stat shows instead of 0, in red, and, if given, instead of 1, in green.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    empty: str
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8
    is_stacked: bool = False
    limits: tuple[float, float] | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a heading, side by side, in as many lines as they need."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard. variables: which of `instance`, `model` and `version` it can be filtered by."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ("instance", "model")


Built = timeseries.Panel | stat.Panel | heatmap.Panel


def build(one: Dashboard) -> models.Dashboard:
    """Returns the dashboard in Grafana's form. The order of rows and panels determines ids and positions."""
    built = (
        dashboard.Dashboard(f"Carousel / {one.title}")
        .uid(one.uid)
        .description(one.description)
        .tags(["carousel"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Carousel")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["carousel"])
            .as_dropdown(False)
            .keep_time(True)
            .include_vars(True)
        )
    )
    for name in one.variables:
        built.with_variable(_variable(name))
    number, y = 1, 0
    for row in one.rows:
        built.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=y)))
        number, y = number + 1, y + 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = models.GridPos(h=_HEIGHTS[panel.kind], w=panel.width, x=x, y=y)
            built.with_panel(_panel(panel).id(number).grid_pos(place))
            number, x, height = number + 1, x + panel.width, max(height, place.h)
        y += height
    return built.build()


def _variable(name: str) -> dashboard.QueryVariable:
    seen = {"instance": 'up{job="carousel"}', "model": "carousel_models_served", "version": "carousel_models_served"}
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(_SOURCE)
        .query(f"label_values({seen[name]}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Built:
    built: Built
    if panel.kind == "stat":
        built = _stat(panel)
    elif panel.kind == "heatmap":
        built = _heatmap(panel)
    else:
        built = _graph(panel)
    built.title(panel.title).description(panel.description).unit(panel.unit).no_value(panel.empty).datasource(_SOURCE)
    for index, query in enumerate(panel.queries):
        target = (
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(chr(ord("A") + index))
            .datasource(_SOURCE)
            .range()
        )
        if panel.kind == "heatmap":
            target.format(PromQueryFormat.HEATMAP)
        built.with_target(target)
    return built


def _graph(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(30 if panel.is_stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if panel.is_stacked:
        built.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    return built


def _stat(panel: Panel) -> stat.Panel:
    steps = [models.Threshold(value=None, color="green")]
    if panel.limits is not None:
        steps += [
            models.Threshold(value=value, color=color)
            for value, color in zip(panel.limits, ("orange", "red"), strict=True)
        ]
    built = (
        stat.Panel()
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    )
    if panel.states:
        options = {
            str(value): models.ValueMappingResult(text=text, color=color, index=value)
            for value, (text, color) in enumerate(zip(panel.states, ("red", "green"), strict=False))
        }
        built.mappings([models.ValueMap(options=options)])
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Spectral").steps(64).exponent(0.5))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_gap(1)
        .show_legend()
    )
